"""What baselines share: checks, blocks, packing, principal components, kernels."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_bits, code_bytes, pack_bits
from hashlens.errors import InvalidInputError
from hashlens.types import Codes, Features, Ids

_BLOCK = 8192  # images projected at a time


class Parameters:
    """What scikit-learn asks of an estimator: its constructor's arguments by name, and its tags."""

    supervised: ClassVar[bool] = False

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Arguments of the constructor, by name, as they were given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; the method is to be fitted again."""
        known = self.get_params()
        unknown = sorted(params.keys() - known.keys())
        if unknown:
            raise InvalidInputError(
                f"{type(self).__name__}: expected parameters of {', '.join(known)}, "
                f"got {', '.join(unknown)}"
            )
        if params:
            type(self).__init__(self, **(known | params))
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of a step of a pipeline; called by scikit-learn alone."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=self.supervised),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(),
        )


class HashMethod(Parameters, ABC):
    """Learns hash functions from features, then turns features into codes.

    The conventions of scikit-learn hold: a method can be cloned, pickled and put into a pipeline.
    """

    # What a model of the method holds; a method with a ``_project`` of its own may have others.
    mean: Any
    kernel: AnchorKernel | None = None
    weights: Any
    phase: NDArray[np.float32] | None = None

    def __init__(self, bits: int, *, seed: int = 0) -> None:
        self.bits = check_bits(bits)
        self.seed = seed
        self._width: int | None = None

    def fit(self, features: Any, labels: Any = None) -> Self:
        """Learn the hash functions from features (n, d), floating.

        ``labels`` (n,) are words or numbers; an unsupervised method never reads them. Raises
        ``InvalidInputError`` if the data is not enough, which says what is needed.
        """
        array = finite_features(features)
        name = type(self).__name__
        if len(array) < self.bits:
            raise InvalidInputError(
                f"{name}: expected at least {self.bits} training images for {self.bits} bits, "
                f"got {len(array)}; add images or use fewer bits"
            )
        if bool((array == array[0]).all()):
            raise InvalidInputError(
                f"{name}: expected training features that differ, got {len(array)} equal rows; "
                "check how they were computed"
            )
        none = np.zeros(0, np.int64)
        self._learn(array, check_labels(labels, len(array), name) if self.supervised else none)
        self._width = array.shape[1]
        return self

    @abstractmethod
    def _learn(self, features: Features, classes: Ids) -> None:
        """Learn from checked features (n, d) and classes (n,) in 0..c-1; none if unsupervised."""

    def _project(self, features: Features) -> NDArray[np.float32]:
        """Values (n, h) of checked features; bit j is 1 where value j is 0 or more.

        These are the values of a linear method, which has learned a mean and weights, or a kernel
        and weights of its values; with a phase, their cosine.
        """
        inputs = features - self.mean if self.kernel is None else self.kernel(features)
        projected: NDArray[np.float32] = inputs @ self.weights
        return projected if self.phase is None else np.cos(projected + self.phase)

    def values(self, features: Any) -> NDArray[np.float32]:
        """Values (n, h) of features (n, d) before their signs become bits; see ``encode``."""
        return self._project(finite_features(features))

    def fit_transform(self, features: Any, labels: Any = None) -> Codes:
        """Learn from features, and return their codes."""
        return self.fit(features, labels).encode(features)

    def __sklearn_is_fitted__(self) -> bool:
        return self._width is not None

    def encode(self, features: Any) -> Codes:
        """Packed codes (n, ceil(bits / 8)), uint8, of features (n, d) like those of ``fit``."""
        if self._width is None:
            raise InvalidInputError(f"{type(self).__name__}: expected fit before encode")
        array = finite_features(features)
        if array.shape[1] != self._width:
            raise InvalidInputError(
                f"features: expected width {self._width} as in fit, got {array.shape[1]}"
            )
        blocks = [
            pack_bits(self._project(array[start : start + _BLOCK]) >= 0)
            for start in range(0, len(array), _BLOCK)
        ]
        return np.concatenate([np.zeros((0, code_bytes(self.bits)), np.uint8), *blocks])

    transform = encode  # scikit-learn's name


def finite_features(features: Any) -> Features:
    """Return features as contiguous finite float32 (n, d), or raise; the message names the row."""
    array = np.ascontiguousarray(features, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidInputError(f"features: expected shape (n, d), got {array.shape}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise InvalidInputError(
            f"features: expected finite numbers, got NaN or infinity in {int((~finite).sum())} "
            f"of {len(array)} rows, first in row {int(np.argmin(finite))}; leave those images out"
        )
    return array


def check_labels(labels: Any, n: int, name: str) -> Ids:
    """Return labels as classes 0..c-1 of shape (n,); raise if they are missing or of one class."""
    if labels is None:
        raise InvalidInputError(f"{name} is supervised: expected labels in fit, got none")
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InvalidInputError(
            f"labels: expected {n} words or numbers, one per image, got {array.dtype} of "
            f"{array.shape}"
        )
    if array.dtype.kind in "iu":
        missing = array < 0
    else:  # None and NaN, which is not equal to itself, in tables
        missing = np.array([value is None or value != value for value in array.tolist()], np.bool_)
    if missing.any():
        raise InvalidInputError(
            f"{name}: expected a label for every training image, got {int(missing.sum())} "
            f"unlabelled (-1, None or NaN), first in row {int(np.argmax(missing))}; leave those "
            "images out"
        )
    words = [isinstance(value, str) for value in array.tolist()]
    if all(words):
        array = array.astype(np.str_)
    elif any(words) or array.dtype.kind not in "iufbO":
        raise InvalidInputError(
            f"labels: expected words or numbers, all of one kind, got {array.dtype} in which "
            f"{sum(words)} of {n} are words; make them one kind, for example all words"
        )
    kinds, classes = np.unique(array, return_inverse=True)
    if len(kinds) < 2:
        raise InvalidInputError(f"{name}: expected at least two classes, got one; add another")
    return classes.astype(np.int64)


def one_hot(classes: Ids) -> NDArray[np.float32]:
    """Class indicators (n, c) of classes (n,) in 0..c-1."""
    return np.eye(int(classes.max()) + 1, dtype=np.float32)[classes]


def signs_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 where a value is 0 or more, else -1."""
    return np.where(values >= 0, np.float32(1), np.float32(-1))


def random_rotation(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation (size, size), uniform over the orthogonal group."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    rotation: NDArray[np.float64] = q * np.sign(np.diag(r))
    return rotation


class Components(NamedTuple):
    """Mean (d,), and orthonormal columns (d, count) with their variances, the largest first.

    The largest entry of each column is positive. ``rank`` is the number of directions in which the
    features vary at all.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float64]
    rank: int


def principal_components(features: Features, count: int) -> Components:
    """The ``count`` directions (at most d) of largest variance of features (n, d)."""
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(features)
    values, vectors = np.linalg.eigh(covariance)
    rank = int((values > values[-1] * 1e-6).sum())
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    directions = (vectors * np.sign(largest)).astype(np.float32)
    return Components(mean.astype(np.float32), directions, np.maximum(values, 0.0), rank)


class AnchorKernel:
    """Centred kernel values between features and randomly chosen training images.

    W. Liu et al., *Supervised hashing with kernels*, CVPR 2012, equation 3: exp(-||x - a||^2 /
    2 s^2), minus its mean over the training images; s^2 is the mean squared distance between
    training images and anchors.
    """

    def __init__(self, features: Features, anchors: int, rng: np.random.Generator) -> None:
        rows = rng.choice(len(features), min(anchors, len(features)), replace=False)
        self.anchors = features[np.sort(rows)]
        self.scale = 2.0 * float(self._squared_distances(features).mean(dtype=np.float64))
        self.mean: NDArray[np.float32] | float = 0.0
        self.mean = self(features).mean(axis=0, dtype=np.float64).astype(np.float32)

    def __len__(self) -> int:
        return len(self.anchors)

    def __call__(self, features: Features) -> NDArray[np.float32]:
        """Centred kernel values, shape (n, anchors)."""
        values: NDArray[np.float32] = np.exp(self._squared_distances(features) / -self.scale)
        values -= self.mean
        return values

    def _squared_distances(self, features: Features) -> NDArray[np.float32]:
        squared: NDArray[np.float32] = np.square(features).sum(axis=1)[:, None] - 2.0 * (
            features @ self.anchors.T
        )
        squared += np.square(self.anchors).sum(axis=1)
        np.maximum(squared, 0.0, out=squared)
        return squared
