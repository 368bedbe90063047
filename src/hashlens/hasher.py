"""``Hasher``: vectors that people already have, and labels where there are any, to codes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from hashlens.baselines import method_names
from hashlens.baselines.base import Parameters
from hashlens.codes.packing import check_bits
from hashlens.data.preprocessing import Metric, VectorInput
from hashlens.data.vectors import as_matrix, vector_source
from hashlens.errors import InvalidInputError, ModelError, needs_extra, writing_model
from hashlens.files import make_folder
from hashlens.models.description import CARD_NAME, read_config
from hashlens.models.encoder import Encoder
from hashlens.types import Codes, EncodedBatch, Features, Mode


class Hasher(Parameters):
    """Learns codes for vectors, such as embeddings, then turns vectors into codes.

    The conventions of scikit-learn hold: it can be cloned, pickled and put into a pipeline. It is
    an encoder too: ``HashIndex.create(path, hasher)`` takes vectors in the place of images.

    Parameters
    ----------
    bits : int
        Length of a code.
    method : str, optional
        Without labels: ITQ (the default), LSH or SH. With labels: an objective of ``hashlens
        train`` ("latent" by default), for which a layer F7 and the latent layer are trained; or
        ITQ-CCA, KSH, BRE or MLH. "crovca-unsupervised" and "bihalf" are objectives that need no
        labels; without them, the former keeps the epoch of the lowest loss on vectors held out.
    metric : {"cosine", "euclidean"}
        With ``cosine`` vectors are brought to unit length inside the model.
    epochs : int, optional
        Passes over the vectors where layers are trained; by default chosen by their number.
    seed : int
        Seed of all random choices.
    progress : bool
        Show progress on standard error.

    Attributes
    ----------
    n_features_in_ : int
        Values of a vector, once fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from hashlens import Hasher
    >>> vectors = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    >>> hasher = Hasher(bits=32).fit(vectors)
    >>> hasher.transform(vectors[:2]).shape
    (2, 4)
    """

    def __init__(
        self,
        bits: int = 128,
        *,
        method: str | None = None,
        metric: Metric = "cosine",
        epochs: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.bits, self.method, self.metric = bits, method, metric
        self.epochs, self.seed, self.progress = epochs, seed, progress
        self._files: dict[str, bytes] = {}
        self._loaded: Encoder | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn codes.

        Parameters
        ----------
        X : array_like of shape (n, d), floating
            A NumPy array, memory-mapped or not; a torch tensor; a pandas or Polars frame; an
            Arrow column of lists.
        y : sequence of length n, optional
            A word, a whole number, or a list of these for each vector; None is unlabelled.

        Returns
        -------
        Hasher
            Itself.

        Raises
        ------
        InvalidInputError
            If a vector is not finite, or of zeros with ``metric="cosine"``; names its row. If the
            method is not known, or needs labels, or more vectors.
        SourceError
            If the labels, or so few vectors, cannot be learned from.
        MissingExtraError
            If torch is not installed.
        """
        with needs_extra("learning codes", "train"):
            from hashlens.training.fit import train
            from hashlens.training.objectives import objectives
            from hashlens.training.unsupervised import train_unsupervised
        check_bits(self.bits)
        method = self.method or ("ITQ" if y is None else "latent")
        known = [*method_names(), *objectives()]
        if method not in known:
            raise InvalidInputError(f"method: expected one of {', '.join(known)}, got {method!r}")
        trained = method in objectives()
        if y is None and trained and objectives()[method].labels:
            raise InvalidInputError(f"method {method}: needs labels; give them as fit(X, y)")
        matrix = as_matrix(X, "X")
        if not len(matrix):
            raise InvalidInputError("X: expected at least one vector, got none")
        source = vector_source(matrix, y, spec="X")
        values: dict[str, Any] = {"bits": self.bits, "seed": self.seed, "metric": self.metric}
        with tempfile.TemporaryDirectory(prefix="hashlens-hasher-") as folder:
            out = Path(folder) / "model"
            if trained:
                given = {**values, "objective": method, "epochs": self.epochs}
                train(source, out, strict=True, progress=self.progress, **given)
            else:
                train_unsupervised(
                    source, out, values, strict=True, progress=self.progress, method=method
                )
            self._take(out)
        self.n_features_in_ = int(matrix.shape[1])
        return self

    def transform(self, X: Any) -> Codes:
        """Packed codes of vectors.

        Parameters
        ----------
        X : array_like of shape (n, d), floating
            As in ``fit``.

        Returns
        -------
        ndarray of shape (n, ceil(bits / 8)), uint8

        Raises
        ------
        InvalidInputError
            If it is not fitted, or a vector has another width or is not finite; names its row.
        """
        return self.encode(X)[0]

    def fit_transform(self, X: Any, y: Any = None) -> Codes:
        """Learn codes, and return those of the same vectors."""
        return self.fit(X, y).transform(X)

    def save(self, path: str | Path) -> None:
        """Write an ordinary model folder, which ``Encoder.load`` and the commands take too."""
        from hashlens.models.checkpoint import replace_model

        self._require_fitted()
        path = Path(path)
        with writing_model(f"{path}:"):
            make_folder(path.parent)
            with tempfile.TemporaryDirectory(prefix=".hashlens-", dir=path.parent) as folder:
                self._write(Path(folder))
                replace_model(path, Path(folder))

    @classmethod
    def load(cls, path: str | Path) -> Hasher:
        """Read what :meth:`save`, or ``hashlens train`` over vectors, wrote."""
        path = Path(path)
        config, _ = read_config(path)
        taken = config.preprocessing
        if not isinstance(taken, VectorInput):
            raise ModelError(f"{path}: this model takes images; open it with Encoder.load")
        hasher = cls(config.bits, metric=taken.metric)
        hasher._take(path)
        hasher.n_features_in_ = taken.width
        return hasher

    # What an index asks of an encoder

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self._encoder.feature_dim

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that codes depend on."""
        return self._encoder.fingerprint

    @property
    def mode(self) -> Mode | None:
        """The mode that found most on vectors held out for validation, where there were some."""
        return self._encoder.mode

    def encode(self, X: Any) -> tuple[Codes, Features]:
        """Codes, and the features that fine search compares.

        Returns
        -------
        codes : ndarray of shape (n, ceil(bits / 8)), uint8
        features : ndarray of shape (n, feature_dim), float32
        """
        encoder, matrix = self._encoder, as_matrix(X, "X")
        if matrix.shape[1] != self.n_features_in_:
            raise InvalidInputError(
                f"X has {matrix.shape[1]} features, but Hasher is expecting "
                f"{self.n_features_in_} features as input"
            )
        return encoder.encode(matrix)

    def encode_batches(
        self, images: Iterable[Any], *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        """As ``Encoder.encode_batches``, over vectors."""
        return self._encoder.encode_batches(images, batch_size=batch_size, strict=strict)

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"Hasher({shown})"

    @property
    def _encoder(self) -> Encoder:
        self._require_fitted()
        if self._loaded is None:
            with tempfile.TemporaryDirectory(prefix="hashlens-hasher-") as folder:
                self._write(Path(folder))
                self._loaded = Encoder.load(folder)
        return self._loaded

    def _require_fitted(self) -> None:
        if not self._files:
            raise InvalidInputError("Hasher: expected fit before this; call fit(X) or load")

    def _take(self, model: Path) -> None:
        """Keep a model's files, so that a copy or a pickle needs no folder."""
        kept = (".json", ".safetensors", ".onnx", ".toml")
        self._files = {
            path.name: path.read_bytes()
            for path in model.iterdir()
            if path.suffix in kept or path.name == CARD_NAME
        }
        self._loaded = Encoder.load(model)

    def _write(self, folder: Path) -> None:
        for name, data in self._files.items():
            (folder / name).write_bytes(data)
