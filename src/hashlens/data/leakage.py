"""The same image in training and in validation: found by a hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError

_DIGEST_BYTES = 16


class Leakage(NamedTuple):
    """Images of a second set that are also in a first.

    Attributes
    ----------
    first, second : ndarray of shape (m,), int64
        Positions of equal images: ``second[i]`` equals ``first[i]``, its first occurrence there.
        ``second`` ascends and names each position once.
    total : int
        Images of the second set.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    total: int

    def __bool__(self) -> bool:
        return len(self.second) > 0

    def describe(self, training_uris: Sequence[str], validation_uris: Sequence[str]) -> str:
        """One line for people.

        Parameters
        ----------
        training_uris, validation_uris : sequence of str
            Names of the images whose hashes were compared, in that order.
        """
        if not self:
            return f"none of the {self.total} validation images is also a training image"
        same = f"{validation_uris[int(self.second[0])]} is {training_uris[int(self.first[0])]}"
        return (
            f"leakage: {len(self.second)} of {self.total} validation images are also training "
            f"images, so scores on them flatter (first: {same})"
        )


def content_hashes(source: Source) -> list[bytes]:
    """Hash each image as it is stored: equal for equal files, nothing is decoded.

    Parameters
    ----------
    source : Source
        Where the images come from.

    Returns
    -------
    list of bytes
        16 bytes an image; empty where it cannot be read, which equals nothing.
    """
    hashes = []
    for row in source.rows.tolist():
        try:
            raw = source.store.read(row)
            content = raw.read_bytes() if isinstance(raw, Path) else raw
        except (OSError, SourceError):
            hashes.append(b"")
            continue
        hashes.append(_digest(content))
    return hashes


def pixel_hashes(pixels: NDArray[np.uint8]) -> list[bytes]:
    """Hash decoded images: equal for equal pixels, also when the files differ.

    Parameters
    ----------
    pixels : ndarray of shape (n, ...), uint8
        As ``decode_source`` gives them.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 2:
        raise InvalidInputError(
            f"pixels: expected uint8 of shape (n, ...), got {pixels.dtype} of {pixels.shape}"
        )
    return [_digest(image) for image in pixels]


def _digest(content: bytes | NDArray[np.uint8]) -> bytes:
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def find_leakage(training: Sequence[bytes], validation: Sequence[bytes]) -> Leakage:
    """Which validation images are also training images.

    Parameters
    ----------
    training, validation : sequence of bytes
        Hashes, both from ``content_hashes`` or both from ``pixel_hashes``.
    """
    known: dict[bytes, int] = {}
    for i, digest in enumerate(training):
        known.setdefault(digest, i)
    known.pop(b"", None)
    pairs = [(known[digest], i) for i, digest in enumerate(validation) if digest in known]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return Leakage(found[:, 0].copy(), found[:, 1].copy(), len(validation))


def same_content(hashes: Sequence[bytes]) -> list[list[int]]:
    """Groups of two or more positions whose images are equal, in order of their first.

    Parameters
    ----------
    hashes : sequence of bytes
        From ``content_hashes`` or ``pixel_hashes``; empty ones equal nothing.
    """
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(hashes):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]
