"""Bit counting on vectors of codes, as intrinsics for the kernels.

Written in LLVM's own vector types, so that the shape of the innermost loop does not depend on the
loop vectoriser; it runs on any processor, and one with VPOPCNTDQ needs two instructions per word
of eight codes. Each function takes a block (w, BLOCK), uint64, contiguous, the
first of GROUP columns, a query (w,), uint64, and ``words``, a tuple of length w.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP = 64
LANES = 8
ONE, FAR = np.uint64(1), np.uint64(1 << 62)  # for the kernels: numba keeps to uint64
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)


@intrinsic
def trailing_zeros(_typing: Any, word: Any) -> Any:
    """Number of 0 bits below the lowest 1 bit of a uint64 other than 0."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def unaligned_word(_typing: Any, data: Any, offset: Any) -> Any:
    """The eight bytes of a uint8 array from ``offset`` on, as a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = cgutils.gep_inbounds(builder, array.data, args[1])
        return builder.load(builder.bitcast(address, _I64.as_pointer()), align=1)

    return types.uint64(data, types.int64), generate


@intrinsic
def load_codes(_typing: Any, data: Any, offset: Any, block: Any, start: Any, words: Any) -> Any:
    """Turn LANES rows of w whole words, from byte ``offset`` of a uint8 array on, into columns."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = context.make_array(signature.args[0])(context, builder, args[0])
        block = context.make_array(signature.args[2])(context, builder, args[2])
        width = len(signature.args[-1])
        together = ir.VectorType(_I64, LANES * width)
        address = cgutils.gep_inbounds(builder, rows.data, args[1])
        loaded = builder.load(builder.bitcast(address, together.as_pointer()), align=1)
        length = cgutils.unpack_tuple(builder, block.shape, 2)[1]
        column = cgutils.gep_inbounds(builder, block.data, args[3])
        for word in range(width):
            lanes = [word + width * lane for lane in range(LANES)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
            picked = builder.shuffle_vector(loaded, ir.Constant(together, ir.Undefined), mask)
            offset = builder.mul(ir.Constant(_I64, word), length)
            target = cgutils.gep_inbounds(builder, column, offset)
            builder.store(picked, builder.bitcast(target, _VECTOR.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(data, types.int64, block, types.int64, words), generate


@intrinsic
def code_distance(_typing: Any, block: Any, start: Any, query: Any, words: Any) -> Any:
    """Distance of the one code in column ``start``, uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns = _Columns(context, builder, signature, args)
        total = ir.Constant(_I64, 0)
        for i in range(columns.count):
            word = builder.load(columns.address(i))
            total = builder.add(total, builder.ctpop(builder.xor(word, columns.query_word(i))))
        return total

    return types.uint64(block, types.int64, query, words), generate


@intrinsic
def any_below(_typing: Any, block: Any, start: Any, query: Any, limit: Any, words: Any) -> Any:
    """Whether a code of the group is nearer than ``limit``: uint8, 0 if none is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns = _Columns(context, builder, signature, [*args[:3], args[4]])
        smallest = None
        for distance in columns.distances():
            if smallest is None:
                smallest = distance
            else:
                nearer = builder.icmp_unsigned("<", distance, smallest)
                smallest = builder.select(nearer, distance, smallest)
        below = builder.icmp_unsigned("<", smallest, _splat(builder, args[3]))
        return builder.bitcast(below, ir.IntType(LANES))

    return types.uint8(block, types.int64, query, types.uint64, words), generate


@intrinsic
def mask_below(_typing: Any, block: Any, start: Any, query: Any, limit: Any, words: Any) -> Any:
    """Which codes of the group are nearer than ``limit``: uint64, bit j for the j-th."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns = _Columns(context, builder, signature, [*args[:3], args[4]])
        limits = _splat(builder, args[3])
        mask = ir.Constant(_I64, 0)
        for g, distance in enumerate(columns.distances()):
            below = builder.icmp_unsigned("<", distance, limits)
            bits = builder.zext(builder.bitcast(below, ir.IntType(LANES)), _I64)
            mask = builder.or_(mask, builder.shl(bits, ir.Constant(_I64, g * LANES)))
        return mask

    return types.uint64(block, types.int64, query, types.uint64, words), generate


class _Columns:
    """The columns of a block from one code on, and the words of a query."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self._builder = builder
        types_ = signature.args
        block = context.make_array(types_[0])(context, builder, args[0])
        self._query = context.make_array(types_[2])(context, builder, args[2]).data
        self._start = cgutils.gep_inbounds(builder, block.data, args[1])
        self._length = cgutils.unpack_tuple(builder, block.shape, 2)[1]
        self.count = len(types_[-1])

    def address(self, word: int) -> Any:
        """Where the given word of the first code is."""
        offset = self._builder.mul(ir.Constant(_I64, word), self._length)
        return cgutils.gep_inbounds(self._builder, self._start, offset)

    def query_word(self, word: int) -> Any:
        return self._builder.load(
            cgutils.gep_inbounds(self._builder, self._query, ir.Constant(_I64, word))
        )

    def distances(self) -> list[Any]:
        """Distances of the group's codes, as one vector per LANES codes."""
        builder = self._builder
        starts = [builder.bitcast(self.address(i), _VECTOR.as_pointer()) for i in range(self.count)]
        query = [_splat(builder, self.query_word(i)) for i in range(self.count)]
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.ctpop.v{LANES}i64"
        )
        totals = []
        for g in range(GROUP // LANES):
            total = None
            for i in range(self.count):
                at = cgutils.gep_inbounds(builder, starts[i], ir.Constant(_I64, g))
                bits = builder.call(popcount, [builder.xor(builder.load(at, align=8), query[i])])
                total = bits if total is None else builder.add(total, bits)
            totals.append(total)
        return totals


def _splat(builder: Any, value: Any) -> Any:
    """A vector with ``value`` in every lane."""
    first = builder.insert_element(
        ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), lanes)
