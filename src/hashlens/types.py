"""Contracts between the parts: what encodes images, and what searches codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

Codes: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Mode: TypeAlias = Literal["hds", "bcs", "es"]
MODES: tuple[Mode, ...] = ("hds", "bcs", "es")

ImageInput: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"
"""A path or URI, encoded bytes, a PIL image, or an (H, W) or (H, W, 3) uint8 array."""


DEFAULT_POOL = 200
"""Images that the fine search of ``hds`` compares for small k, where no radius is given."""

POOL_PER_RESULT = 4
"""For k above ``DEFAULT_POOL / POOL_PER_RESULT``, the pool holds this many images per result.

Both were chosen on validation images (``benchmarks/hds_pool.py``, docs/results/index.md).
"""


def default_pool(k: int) -> int:
    """Size of the pool for k results, where neither pool nor radius is given."""
    return max(DEFAULT_POOL, POOL_PER_RESULT * k)


@dataclass(frozen=True, eq=False)
class SearchOptions:
    """How to search: what every searcher takes, checked once.

    Attributes
    ----------
    k : int
        At most this many results per query.
    mode : {"hds", "bcs", "es"}
        Coarse by codes then fine by features; codes only; or exhaustive over features.
    radius : int or None
        ``hds`` and ``bcs``: only images within this Hamming distance.
    pool : int or None
        ``hds`` without radius: number of images that the fine search compares.
    where : mapping or None
        Only images whose label or metadata meet these conditions.
    exclude : ndarray of shape (q,), int64, or None
        For each query, one id that is left out of its results (-1: none).

    Raises
    ------
    InvalidInputError
        If a value has the wrong type or range, or two do not go together.
    """

    k: int = 10
    _: KW_ONLY
    mode: Mode = "hds"
    radius: int | None = None
    pool: int | None = None
    where: Mapping[str, Any] | None = None
    exclude: Ids | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise InvalidInputError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        for name, lowest in (("k", 1), ("radius", 0), ("pool", 1)):
            value = getattr(self, name)
            if value is None and name != "k":
                continue
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < lowest:
                raise InvalidInputError(
                    f"{name}: expected a whole number of {lowest} or more, got {value!r:.80}"
                )
            object.__setattr__(self, name, int(value))
        if self.radius is not None and self.mode == "es":
            raise InvalidInputError("radius: goes with mode hds or bcs, not with es; leave it out")
        if not isinstance(self.where, Mapping | None):
            raise InvalidInputError(
                f"where: expected a mapping such as {{'label': 'cat'}}, got {self.where!r:.80}"
            )
        if self.exclude is not None:
            exclude = np.asarray(self.exclude)
            if exclude.ndim != 1 or (exclude.size and exclude.dtype.kind not in "iu"):
                raise InvalidInputError(
                    f"exclude: expected one id per query, got {self.exclude!r:.80}"
                )
            object.__setattr__(self, "exclude", exclude.astype(np.int64))

    @property
    def pool_size(self) -> int:
        """The pool asked for, or the default for k."""
        return self.pool or default_pool(self.k)


@dataclass
class SearchTrace:
    """What coarse-to-fine searches did; they add to it.

    Attributes
    ----------
    coarse, fine : float
        Seconds in each stage.
    pools : list of int
        Size of each query's pool.
    missing : list of str
        Shards that did not answer; only an index in shards has any.
    """

    coarse: float = 0.0
    fine: float = 0.0
    pools: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class SearchResult(NamedTuple):
    """Nearest first, ties by id.

    Attributes
    ----------
    ids : ndarray of shape (q, k), int64
        -1 where a query's pool holds fewer than k images.
    distances : ndarray of shape (q, k)
        Hamming distances (uint16; 65535 beside id -1) for ``bcs``; Euclidean distances (float32;
        inf beside id -1) for ``hds`` and ``es``.
    """

    ids: Ids
    distances: NDArray[Any]


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    position: int
    name: str
    reason: str


class EncodedBatch(NamedTuple):
    """What an encoder made of some of its input images.

    Attributes
    ----------
    positions : ndarray of shape (m,), int64
        Where each encoded image stood in the input; ascending.
    codes : ndarray of shape (m, ceil(bits / 8)), uint8
    features : ndarray of shape (m, d), float32
    scores : ndarray of shape (m, classes), float32, or None
        Class scores (F8 before the softmax), where the encoder has a classifier.
    skipped : tuple of Skipped
        Images of this batch that could not be read.
    """

    positions: Ids
    codes: Codes
    features: Features
    scores: NDArray[np.float32] | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class EncodedImages:
    """A set of encoded images, and what is known of each.

    Attributes
    ----------
    codes : ndarray of shape (n, ceil(bits / 8)), uint8
        Packed codes.
    features : ndarray of shape (n, d), float32
        d is 0 where there are none; ``hds`` and ``es`` need them.
    labels : ndarray of shape (n,), int64, or (n, classes), bool
        One class per image (-1: none), or many.
    scores : ndarray of shape (n, classes), float32, or None
        Class scores before the softmax, where the encoder has a classifier.
    uris : tuple of str
        Where each image came from, if it is known.
    positions : ndarray of shape (n,), int64
        Position of each image in its source, ascending; empty where there is no source.
    skipped : tuple of Skipped
        Images of the source that could not be read.
    """

    codes: Codes
    features: Features
    labels: NDArray[np.int64] | NDArray[np.bool_]
    scores: NDArray[np.float32] | None = None
    uris: tuple[str, ...] = ()
    positions: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, rows: slice | Ids) -> EncodedImages:
        """Codes, features, labels and scores of some of the images."""
        scores = None if self.scores is None else self.scores[rows]
        return EncodedImages(self.codes[rows], self.features[rows], self.labels[rows], scores)


@runtime_checkable
class EncoderLike(Protocol):
    """Turns images into packed codes and features."""

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        ...

    @property
    def feature_dim(self) -> int:
        """Width d of a feature vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that codes depend on: equal for equal codes."""
        ...

    def encode(self, images: Sequence[ImageInput]) -> tuple[Codes, Features]:
        """Encode all images, in order.

        Raises
        ------
        ImageError
            If one cannot be read; the message names it.
        """
        ...

    def encode_batches(
        self, images: Iterable[ImageInput], *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        """Encode a stream; unreadable images are reported in ``skipped``, or raise if strict."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """Answers encoded queries over a set of images."""

    def __len__(self) -> int: ...

    def search_encoded(
        self, codes: Codes, features: Features | None, options: SearchOptions, /
    ) -> SearchResult:
        """Search with q encoded queries.

        Parameters
        ----------
        codes : ndarray of shape (q, ceil(bits / 8)), uint8
            Packed codes of the queries.
        features : ndarray of shape (q, d), float32, or None
            Needed by ``hds`` and ``es``.
        options : SearchOptions
            How many results, and which.
        """
        ...
