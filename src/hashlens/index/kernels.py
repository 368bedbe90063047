"""Compiled loops over features. Arrays in, arrays out.

Squares of float32 differences are exact in float64, and their sums precise to far more digits
than a float32 holds: so NumPy, which adds in another order, has the same distances (``features``).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
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


_LANES, _I64 = 16, ir.IntType(64)


@intrinsic
def _dot(_typing: Any, row: Any, query: Any, length: Any) -> Any:
    """Product of a row (d,) and a query (d,) of float32, in vectors of _LANES and one by one.

    The row is float32, or the bits of float16, which are widened on the way.
    """
    half = row.dtype == types.uint16

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, word = ir.FloatType(), ir.IntType(32)
        stored = ir.IntType(16) if half else number
        pointers = [
            builder.bitcast(context.make_array(kind)(context, builder, value).data, to.as_pointer())
            for kind, value, to in zip(signature.args, args[:2], (stored, number), strict=False)
        ]

        def widened(value: Any, lanes: int) -> Any:
            words, numbers = ir.VectorType(word, lanes), ir.VectorType(number, lanes)
            value = builder.zext(value, words)
            size = builder.and_(value, ir.Constant(words, [0x7FFF] * lanes))
            size = builder.shl(size, ir.Constant(words, [13] * lanes))
            sign = builder.and_(value, ir.Constant(words, [0x8000] * lanes))
            sign = builder.shl(sign, ir.Constant(words, [16] * lanes))
            value = builder.bitcast(builder.or_(size, sign), numbers)
            return builder.fmul(value, ir.Constant(numbers, [float(_HALF_SCALE)] * lanes))

        def add_up(total: Any, at: Any, lanes: int) -> None:
            values = []
            for pointer, kind in zip(pointers, (stored, number), strict=True):
                vector = ir.VectorType(kind, lanes)
                address = builder.bitcast(builder.gep(pointer, [at]), vector.as_pointer())
                value = builder.load(address, align=4 if kind is number else 2)
                values.append(value if kind is number else widened(value, lanes))
            builder.store(builder.fadd(builder.load(total), builder.fmul(*values)), total)

        lanes = ir.Constant(_I64, _LANES)
        vectors = builder.sdiv(args[2], lanes)
        zeros = ir.Constant(ir.VectorType(number, _LANES), [0.0] * _LANES)
        sums = cgutils.alloca_once_value(builder, zeros)
        with cgutils.for_range(builder, vectors) as loop:
            add_up(sums, builder.mul(loop.index, lanes), _LANES)
        single = ir.Constant(ir.VectorType(number, 1), [0.0])
        total = cgutils.alloca_once_value(builder, single)
        with cgutils.for_range(builder, args[2], start=builder.mul(vectors, lanes)) as loop:
            add_up(total, loop.index, 1)
        result = builder.extract_element(builder.load(total), ir.Constant(word, 0))
        parts = builder.load(sums)
        for lane in range(_LANES):
            part = builder.extract_element(parts, ir.Constant(word, lane))
            result = builder.fadd(result, part)
        return result

    return types.float32(row, query, types.int64), generate


@numba.njit(nogil=True, cache=True)
def products(values: Any, queries: Any, out: Any) -> None:
    """Products of rows (n, d), float32 or bits of float16, with queries (q, d), into out (q, n)."""
    for i in range(values.shape[0]):
        for q in range(queries.shape[0]):
            out[q, i] = _dot(values[i], queries[q], values.shape[1])
