"""Compiled loops over features, float32 or the bits of float16. Arrays in, arrays out.

Squares of float32 differences are exact in float64, and their sums precise to far more digits
than a float32 holds: so NumPy, which adds in another order, has the same distances (``features``).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

# Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


@intrinsic
def _number(_typing: Any, stored: Any) -> Any:
    """A stored value as float32: itself, or the bits of a float16, widened.

    A half is a float32 whose exponent is 112 too small, once its bits are shifted into place.
    """

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if stored == types.float32:
            return args[0]
        word, number = ir.IntType(32), ir.FloatType()
        bits = builder.zext(args[0], word)
        size = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
        sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
        value = builder.bitcast(builder.or_(size, sign), number)
        return builder.fmul(value, number(2.0**112))

    return types.float32(stored), generate


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def squared_distances(values: Any, rows: NDArray[np.int64], query: Any, out: Any) -> None:
    """Squared Euclidean distances of ``query`` (d,) to rows of values (n, d), into out."""
    for i in range(rows.shape[0]):
        row = values[rows[i]]
        total = 0.0
        for j in range(query.shape[0]):
            difference = np.float64(_number(row[j]) - query[j])
            total += difference * difference
        out[i] = total


@numba.njit(nogil=True, cache=True)
def widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Bits of float16 (n, d) as float32, into out."""
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = _number(bits[i, j])


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def products(values: Any, queries: Any, out: Any) -> None:
    """Products of rows of values (n, d) with queries (q, d), into out (q, n)."""
    for i in range(values.shape[0]):
        row = values[i]
        for q in range(queries.shape[0]):
            query = queries[q]
            total = np.float32(0)
            for j in range(query.shape[0]):
                total += _number(row[j]) * query[j]
            out[q, i] = total
