"""GIST: the 512 numbers that the printed non-deep curves on CIFAR-10 work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hashlens.errors import InvalidInputError
from hashlens.types import Features

SCALES = 4
ORIENTATIONS = 8
GRID = 4
WIDTH = SCALES * ORIENTATIONS * GRID * GRID
BLOCK = 256


def gist(pixels: NDArray[np.uint8], *, progress: Callable[[int], None] | None = None) -> Features:
    """GIST descriptors: energies of oriented filters over a 4 x 4 grid.

    A. Oliva, A. Torralba, *Modeling the shape of the scene*, IJCV 42, 2001, with the settings of
    the authors' LMgist for 512 numbers: grey image stretched to 0..255; logarithm, whitening and
    division by the local contrast below 4 cycles per image; 4 scales of 8 orientations, magnitude
    of the complex response, mean over each cell. An image keeps its size; edges are mirrored.

    Parameters
    ----------
    pixels : ndarray of shape (n, size, size) or (n, size, size, channels), uint8
        Grey, or red, green and blue; size is a multiple of 4.
    progress : callable, optional
        Called with the number of images done since the last call.

    Returns
    -------
    ndarray of shape (n, 512), float32
        Scale by scale, in each orientation by orientation, then the cells row by row.

    Raises
    ------
    InvalidInputError
        If the shape is not that of square images whose side is a multiple of 4.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[1] != pixels.shape[2] or pixels.shape[1] % GRID:
        raise InvalidInputError(
            f"gist: expected square images of a side that is a multiple of {GRID}, as (n, size, "
            f"size[, channels]), got {pixels.shape}"
        )
    size = pixels.shape[1]
    filters = _gabor_filters(size + 2 * _margin(size))
    result = np.zeros((len(pixels), WIDTH), np.float32)
    for start in range(0, len(pixels), BLOCK):
        block = pixels[start : start + BLOCK].astype(np.float32)
        grey = block if block.ndim == 3 else block.mean(axis=3)
        result[start : start + BLOCK] = _energies(_even_contrast(grey), filters)
        if progress is not None:
            progress(len(block))
    return result


def _margin(size: int) -> int:
    return max(size // 4, 1)


def _spectrum_product(images: Any, transfer: Any) -> Any:
    """Images filtered by one real transfer function of their own size."""
    return fft.ifft2(fft.fft2(images, workers=-1) * transfer, workers=-1)


def _frequencies(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Radius (cycles per image) and angle of each Fourier coefficient, shape (size, size)."""
    axis = np.fft.fftfreq(size, 1 / size)
    across, down = np.meshgrid(axis, axis)
    return np.hypot(across, down).astype(np.float32), np.arctan2(down, across).astype(np.float32)


def _even_contrast(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm, minus its low frequencies, divided by the local contrast."""
    size, margin, cycles = grey.shape[1], 5, 4.0
    darkest = grey.min(axis=(1, 2), keepdims=True)
    extent = np.maximum(grey.max(axis=(1, 2), keepdims=True) - darkest, 1.0)
    scaled = np.log1p(255 * (grey - darkest) / extent)
    padded = np.pad(scaled, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    radius, _ = _frequencies(size + 2 * margin)
    low = np.exp(-np.square(radius) / (cycles**2 / np.log(2))).astype(np.float32)
    sharp = padded - _spectrum_product(padded, low).real
    contrast = np.sqrt(np.abs(_spectrum_product(np.square(sharp), low)))
    inside = slice(margin, margin + size)
    even: NDArray[np.float32] = (sharp / (0.2 + contrast))[:, inside, inside]
    return even


def _gabor_filters(size: int) -> NDArray[np.float32]:
    """Transfer functions (32, size, size): Gaussians on a ring, by scale and orientation."""
    radius, angle = _frequencies(size)
    filters = []
    for scale in range(SCALES):
        ring = np.exp(-3.5 * np.square(radius / size / (0.3 / 1.85**scale) - 1))
        for orientation in range(ORIENTATIONS):
            turned = angle + np.pi * orientation / ORIENTATIONS
            turned = (turned + np.pi) % (2 * np.pi) - np.pi
            spread = 16 * ORIENTATIONS**2 / 32**2
            filters.append(ring * np.exp(-2 * np.pi * spread * np.square(turned)))
    return np.stack(filters).astype(np.float32)


def _energies(images: NDArray[np.float32], filters: NDArray[np.float32]) -> Features:
    """Mean response magnitudes over the grid's cells, shape (n, 32 * 16)."""
    n, size, _ = images.shape
    margin, cell = _margin(size), size // GRID
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    spectrum = fft.fft2(padded, workers=-1)
    found = []
    for transfer in filters:
        response = np.abs(fft.ifft2(spectrum * transfer, workers=-1))
        inside = response[:, margin : margin + size, margin : margin + size]
        cells = inside.reshape(n, GRID, cell, GRID, cell).mean(axis=(2, 4))
        found.append(cells.reshape(n, GRID * GRID))
    return np.concatenate(found, axis=1).astype(np.float32)
