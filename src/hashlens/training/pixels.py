"""Decoded training images: all in memory, or decoded when they are asked for."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hashlens.data.images import UnreadableImageError
from hashlens.errors import ImageError
from hashlens.protocols import Skipped

if TYPE_CHECKING:
    from hashlens.data.preprocessing import Preprocessing
    from hashlens.data.source import Source


class Pixels(Protocol):
    """Images by row, decoded and resized."""

    def __len__(self) -> int: ...

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of some rows.

        Parameters
        ----------
        rows : ndarray of shape (b,), int64
            Which images.

        Returns
        -------
        pixels : tensor of shape (b, size, size, channels), uint8
        readable : tensor of shape (b,), bool
            False where an image could not be read; its pixels are 0.
        """
        ...


class MemoryPixels:
    """Images held decoded in memory.

    Parameters
    ----------
    pixels : ndarray of shape (n, size, size, channels), uint8
        The images, in the order of their rows.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels))

    def __len__(self) -> int:
        return len(self._pixels)

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of some rows; see :class:`Pixels`."""
        chosen = self._pixels[torch.from_numpy(rows)]
        return chosen, torch.ones(len(rows), dtype=torch.bool)


class FeatureRows:
    """Features computed before, gathered like pixels.

    Parameters
    ----------
    features : tensor of shape (n, d), float32
        One row an image.
    """

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features

    def __len__(self) -> int:
        return len(self._features)

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of some rows; see :class:`Pixels`."""
        chosen = self._features[torch.from_numpy(rows)]
        return chosen, torch.ones(len(rows), dtype=torch.bool)


class StreamedPixels:
    """Images decoded by threads each time they are asked for.

    Parameters
    ----------
    source : Source
        Where the images are.
    rows : ndarray of shape (n,), int64
        The source's images that count here, in order.
    preprocessing : Preprocessing
        Decides the size.
    strict : bool
        Raise for an unreadable image instead of noting it in ``skipped``.
    """

    def __init__(
        self,
        source: Source,
        rows: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        strict: bool = False,
    ) -> None:
        self._source, self._rows, self._preprocessing = source, rows, preprocessing
        self._strict = strict
        self.skipped: list[Skipped] = []  # each once; grows while images are asked for
        self._unreadable: set[int] = set()
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of some rows; see :class:`Pixels`."""
        size, channels = self._preprocessing.size, self._preprocessing.channels
        pixels = np.zeros((len(rows), size, size, channels), dtype=np.uint8)
        fill = self._threads.map(
            self._decode, rows.tolist(), itertools.repeat(pixels), range(len(rows))
        )
        return torch.from_numpy(pixels), torch.tensor(list(fill), dtype=torch.bool)

    def _decode(self, row: int, pixels: NDArray[np.uint8], place: int) -> bool:
        position = int(self._rows[row])
        try:
            pixels[place] = self._preprocessing.pixels(
                self._source.load(position, size_hint=self._preprocessing.size_hint)
            )
        except ImageError as error:
            if self._strict:
                raise
            if row not in self._unreadable:
                self._unreadable.add(row)
                name = self._source.uris[position]
                reason = error.reason if isinstance(error, UnreadableImageError) else str(error)
                self.skipped.append(Skipped(position, name, reason))
            return False
        return True
