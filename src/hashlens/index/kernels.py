"""Compiled loops over features. Arrays in, arrays out.

Squares of float32 differences are exact in float64, and their sums precise to far more digits
than a float32 holds: so NumPy, which adds in another order, has the same distances (``features``).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

# Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}
# A half is a float32 whose exponent is 112 too small, once its bits are shifted into place.
_HALF_SCALE = np.float32(2.0**112)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def squared_distances_half(
    bits: NDArray[np.uint16], rows: NDArray[np.int64], query: Any, out: Any
) -> None:
    """Squared Euclidean distances of ``query`` (d,) to rows of float16 bits (n, d), into out."""
    d = query.shape[0]
    words = np.empty(d, np.uint32)
    values = words.view(np.float32)
    for i in range(rows.shape[0]):
        row = bits[rows[i]]
        for j in range(d):
            half = np.uint32(row[j])
            words[j] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | (
                (half & np.uint32(0x8000)) << np.uint32(16)
            )
        total = 0.0
        for j in range(d):
            difference = np.float64(values[j] * _HALF_SCALE - query[j])
            total += difference * difference
        out[i] = total


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def squared_distances(values: Any, rows: NDArray[np.int64], query: Any, out: Any) -> None:
    """Squared Euclidean distances of ``query`` (d,) to rows of float32 (n, d), into out."""
    for i in range(rows.shape[0]):
        row = values[rows[i]]
        total = 0.0
        for j in range(query.shape[0]):
            difference = np.float64(row[j] - query[j])
            total += difference * difference
        out[i] = total


@numba.njit(nogil=True, cache=True)
def widen_half(bits: NDArray[np.uint16], words: NDArray[np.uint32]) -> None:
    """Bits of float16 (n, d) to bits of float32 (n, d)."""
    values = words.view(np.float32)
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            half = np.uint32(bits[i, j])
            words[i, j] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | (
                (half & np.uint32(0x8000)) << np.uint32(16)
            )
        for j in range(bits.shape[1]):
            values[i, j] *= _HALF_SCALE


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def squared_norms(values: Any, out: Any) -> None:
    """Sum of squares of each row of float32 (n, d), into out."""
    for i in range(values.shape[0]):
        total = np.float32(0)
        for j in range(values.shape[1]):
            total += values[i, j] * values[i, j]
        out[i] = total
