"""Contracts between the parts: what encodes images, and what searches codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Codes: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Mode: TypeAlias = Literal["hds", "bcs", "es"]
MODES: tuple[Mode, ...] = ("hds", "bcs", "es")

ImageInput: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"
"""A path or URI, encoded bytes, a PIL image, or an (H, W) or (H, W, 3) uint8 array."""


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


@runtime_checkable
class Encoder(Protocol):
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
        self,
        codes: Codes,
        features: Features | None,
        k: int,
        *,
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        exclude: Ids | None = None,
    ) -> SearchResult:
        """Search with q encoded queries.

        Parameters
        ----------
        codes : ndarray of shape (q, ceil(bits / 8)), uint8
            Packed codes of the queries.
        features : ndarray of shape (q, d), float32, or None
            Needed by ``hds`` and ``es``.
        k : int
            At most k results a query.
        mode : {"hds", "bcs", "es"}
            Coarse then fine, binary codes only, or exhaustive over features.
        radius : int, optional
            ``hds`` and ``bcs``: only images within this Hamming distance.
        where : mapping, optional
            Only images whose label or metadata equal these values.
        exclude : ndarray of shape (q,), int64, optional
            One id a query that is left out of that query's results (-1: none).
        """
        ...
