"""What the parts pass to each other, and the protocols of encoders, searchers and indexes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.files import FileState

if TYPE_CHECKING:
    from PIL import Image

Codes: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Latent: TypeAlias = NDArray[np.float32]
Mode: TypeAlias = Literal["hds", "acs", "bcs", "es"]
MODES: tuple[Mode, ...] = ("hds", "acs", "bcs", "es")

Metadata: TypeAlias = Mapping[str, Any]
OWN_COLUMN = {b"hashlens": b"index"}
"""Marks columns of an exported table that are no metadata of its images."""

ImageInput: TypeAlias = "str | Path | bytes | Image.Image | NDArray[Any]"
"""A path or URI, encoded bytes, a PIL image, or an (H, W) or (H, W, 3) uint8 array.

For a model over ready vectors: a one-dimensional array of floating numbers.
"""


class Text(str):
    """A description in words that is searched by, where the model knows texts."""


DEFAULT_POOL = 200
"""Images that ``hds`` and ``acs`` order for small k, where no radius is given."""

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
    mode : {"hds", "acs", "bcs", "es"}
        Coarse by codes, then fine by features (``hds``) or by the query's latent values against
        the stored bits (``acs``, asymmetric code search); codes only; or exhaustive over
        features.
    radius : int or None
        All modes but ``es``: only images within this Hamming distance.
    pool : int or None
        ``hds`` and ``acs`` without radius: number of images that the fine search orders.
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
            if not is_id(value) or value < lowest:
                raise InvalidInputError(
                    f"{name}: expected a whole number of {lowest} or more, got {value!r:.80}"
                )
            object.__setattr__(self, name, int(value))
        if self.radius is not None and self.mode == "es":
            raise InvalidInputError("radius: goes with hds, acs or bcs, not with es; leave it out")
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
    mode : str or None
        How ``Index.search`` searched: useful where no mode was given.
    """

    coarse: float = 0.0
    fine: float = 0.0
    pools: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mode: Mode | None = None


class SearchResult(NamedTuple):
    """Nearest first, ties by id.

    Attributes
    ----------
    ids : ndarray of shape (q, k), int64
        -1 where a query's pool holds fewer than k images.
    distances : ndarray of shape (q, k)
        Hamming distances (uint16; 65535 next to id -1) for ``bcs``; float32 (inf next to id -1)
        for the others: Euclidean distances for ``hds`` and ``es``; for ``acs`` the sum of
        abs(latent) of the query over the bits that differ.
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
        Place of each encoded image in the input; ascending.
    codes : ndarray of shape (m, ceil(bits / 8)), uint8
    features : ndarray of shape (m, d), float32
    scores : ndarray of shape (m, classes), float32, or None
        Class scores (F8 before the softmax), where the encoder has a classifier.
    skipped : tuple of Skipped
        Images of this batch that could not be read.
    files : tuple of FileState or None
        How the file of each encoded image looked when it was read, None for one in memory.
    latent : ndarray of shape (m, bits), float32, or None
        Layer H before the sigmoid, which ``acs`` orders by; bit j is 1 where it is at least 0.
    """

    positions: Ids
    codes: Codes
    features: Features
    scores: NDArray[np.float32] | None
    skipped: tuple[Skipped, ...]
    files: tuple[FileState | None, ...]
    latent: Latent | None = None


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
    latent : ndarray of shape (n, bits), float32, or None
        Layer H before the sigmoid; ``acs`` needs it of queries.
    """

    codes: Codes
    features: Features
    labels: NDArray[np.int64] | NDArray[np.bool_]
    scores: NDArray[np.float32] | None = None
    uris: tuple[str, ...] = ()
    positions: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: tuple[Skipped, ...] = ()
    latent: Latent | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, rows: slice | Ids) -> EncodedImages:
        """Codes, features, labels, scores and latent values of some of the images."""
        return EncodedImages(
            self.codes[rows],
            self.features[rows],
            self.labels[rows],
            None if self.scores is None else self.scores[rows],
            latent=None if self.latent is None else self.latent[rows],
        )


class Record(NamedTuple):
    """An image of an index.

    Attributes
    ----------
    id : int
        Stays the same for as long as the image is in the index; never given again.
    uri : str
        Absolute path or URI; empty where the image came from memory.
    label : str or None
        Class name.
    metadata : dict
        What the user gave, as JSON values.
    """

    id: int
    uri: str
    label: str | None
    metadata: dict[str, Any]


class Hit(NamedTuple):
    """An image found by a search.

    Attributes
    ----------
    id, uri, label, metadata
        As in ``Record``.
    hamming : int
        Bits that differ from the query's code.
    euclidean : float or None
        Distance of features; None for modes ``bcs`` and ``acs``.
    code : bytes
        The image's packed code.
    asymmetric : float or None
        Distance of the query's latent values from the image's bits; for mode ``acs`` only.
    """

    id: int
    uri: str
    label: str | None
    metadata: dict[str, Any]
    hamming: int
    euclidean: float | None
    code: bytes
    asymmetric: float | None = None

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name != "code")
        return f"Hit({', '.join(shown)})"


class AddReport(NamedTuple):
    """What an ``add`` did.

    Attributes
    ----------
    ids : ndarray of shape (m,), int64
        Of the images that were added, in order.
    skipped : tuple of Skipped
        Images that could not be read.
    """

    ids: Ids
    skipped: tuple[Skipped, ...]


class SyncReport(NamedTuple):
    """What a ``sync`` did, in images.

    Attributes
    ----------
    added, updated, moved, removed, unchanged : int
        New; encoded again; found under another name; gone from the folder; left alone.
    skipped : tuple of Skipped
        Files that could not be read. One that was indexed before keeps its old entry.
    """

    added: int
    updated: int
    moved: int
    removed: int
    unchanged: int
    skipped: tuple[Skipped, ...]


class DuplicateGroups(NamedTuple):
    """Groups of near-duplicates.

    Attributes
    ----------
    groups : list of list of int
        Ids, ascending in each group; groups in the order of their first id. Two images are in
        one group if a chain of pairs within the radius joins them.
    pairs : int
        Pairs within the radius.
    """

    groups: list[list[int]]
    pairs: int


@dataclass(frozen=True)
class IndexInfo:
    """Size, kind and origin of an index.

    Attributes
    ----------
    path : str
        The folder.
    format_version : int
        Of the folder.
    images, removed : int
        Living images; rows that ``compact`` would drop.
    bits, feature_dim : int
        Length of a code; width of a feature vector (0: codes only).
    features : str
        "float16" or "float32".
    fingerprint, model : str
        Of the encoder, and where its model is; empty where unknown.
    commit : int
        Number of the last commit.
    bytes_on_disk : int
        Size of all files.
    """

    path: str
    format_version: int
    images: int
    removed: int
    bits: int
    feature_dim: int
    features: str
    fingerprint: str
    model: str
    commit: int
    bytes_on_disk: int


@runtime_checkable
class EncoderLike(Protocol):
    """Turns images into packed codes and features."""

    @property
    def bits(self) -> int:
        """Length of a code in bits."""

    @property
    def feature_dim(self) -> int:
        """Width d of a feature vector."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that codes depend on: equal for equal codes."""

    def encode_batches(
        self, images: Iterable[ImageInput], *, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        """Encode a stream; unreadable images are reported in ``skipped``, or raise if strict."""


@runtime_checkable
class Searcher(Protocol):
    """Answers encoded queries over a set of images."""

    def __len__(self) -> int: ...

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
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
        latent : ndarray of shape (q, bits), float32, optional
            Layer H before the sigmoid; needed by ``acs``. A row of NaN: only its code is known,
            and all bits count alike.

        Returns
        -------
        SearchResult
            ids (q, k) int64 and distances (q, k).
        """


def is_id(value: Any) -> bool:
    """Whether a value can be an image's id: a whole number, and not true or false."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
