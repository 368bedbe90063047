"""Euclidean distances over features that may be float16, and may be memory-mapped."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.light import suffices
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.errors import InvalidInputError
from hashlens.types import Features, Ids


def will_need(array: NDArray[Any], rows: Ids) -> None:
    """Tell the system that these rows are about to be read, so that it fetches many at a time.

    Touching a row that is not in memory waits for the disk, one row after the other; a disk is
    fastest when asked for many at a time. Does nothing for arrays that are not contiguous or on
    systems without ``madvise``; harmless for arrays that are not files.
    """
    advise = _madvise()
    if advise is None or not array.flags.c_contiguous:
        return
    length = array.strides[0]
    starts = array.ctypes.data + rows * length
    pages = starts & -mmap.PAGESIZE
    lengths = starts + length - pages
    for start, size in zip(pages.tolist(), lengths.tolist(), strict=True):
        advise(start, size, mmap.MADV_WILLNEED)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_WILLNEED"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


# Bytes of float32 features that exhaustive search holds at a time: the cache's size, or nearly.
_BLOCK_BYTES = 1 << 24
_FEW_QUERIES = 2
_QUERIES_AT_A_TIME = 512

# Where the first rows take so long, they come from a disk; then the rest is requested at once.
_PROBE_ROWS = 32
_SLOW_ROW_SECONDS = 15e-6


def check_features(features: Any, name: str = "features") -> NDArray[Any]:
    """Return features (n, d) as float16 or float32, or raise."""
    array = np.asarray(features)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InvalidInputError(
            f"{name}: expected floats of shape (n, d), got {array.dtype} of shape {array.shape}"
        )
    return array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)


def distances_to_rows(
    features: NDArray[Any], rows: Ids, query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Distances of one query to some rows."""
    if suffices(1, rows.size * features.shape[1]):
        apart = (features[rows].astype(np.float32) - query).astype(np.float64)
        squared: NDArray[np.float32] = np.einsum("ij,ij->i", apart, apart).astype(np.float32)
        return np.sqrt(squared, out=squared)
    from hashlens.index import kernels

    values, out = _frozen(features), np.empty(len(rows), np.float32)
    began = time.perf_counter()
    kernels.squared_distances(values, rows[:_PROBE_ROWS], query, out[:_PROBE_ROWS])
    if time.perf_counter() - began > _PROBE_ROWS * _SLOW_ROW_SECONDS:
        will_need(values, rows[_PROBE_ROWS:])
    kernels.squared_distances(values, rows[_PROBE_ROWS:], query, out[_PROBE_ROWS:])
    return np.sqrt(out, out=out)


class RowNorms:
    """Squared norms of rows to which more are only ever added: each is computed once."""

    def __init__(self) -> None:
        self._norms = np.zeros(0, np.float32)
        self._lock = threading.Lock()

    def of(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """The norms (n,) of features (n, d)."""
        with self._lock:
            held = len(self._norms)
            if held < len(features):
                norms = np.empty(len(features), np.float32)
                norms[:held] = self._norms
                step = _rows_at_a_time(features)
                buffer = np.empty((step, features.shape[1]), np.float32)
                for at in range(held, len(features), step):
                    values = _widened(features[at : at + step], buffer)
                    norms[at : at + step] = np.einsum("ij,ij->i", values, values)
                self._norms = norms
            return self._norms[: len(features)]


def nearest_candidates(
    features: NDArray[Any],
    norms: NDArray[np.float32],
    queries: Features,
    k: int,
    allowed: NDArray[np.bool_] | None,
) -> list[Ids]:
    """For each query the rows that may be among its k nearest, ascending: never one too few.

    Distances come from a matrix product, |x|^2 - 2 x.q + |q|^2. Its rounding error is bounded by
    2 (d + 8) 2^-24 (|x|^2 + |q|^2); rows within twice that of the k-th are kept, for the caller
    to settle with ``distances_to_rows``.
    """
    d = features.shape[1]
    step = _rows_at_a_time(features)
    buffer = np.empty((step, d), np.float32)
    found: list[Ids] = []
    for at in range(0, len(queries), _QUERIES_AT_A_TIME):
        some = queries[at : at + _QUERIES_AT_A_TIME]
        collectors = [_Collector(k) for _ in some]
        query_norms = np.einsum("ij,ij->i", some, some)
        products = np.empty((len(some), step), np.float32)
        for start in range(0, len(features), step):
            block = slice(start, min(start + step, len(features)))
            mask = None if allowed is None else allowed[block]
            if mask is not None and not mask.any():
                continue
            product = products[:, : block.stop - start]
            _multiply(features[block], some, buffer, product)
            product *= -2
            product += norms[block]
            bound = 2 * (d + 8) * 2.0**-24 * (query_norms + norms[block].max())
            rows = start + (np.arange(product.shape[1]) if mask is None else np.flatnonzero(mask))
            squared = product if mask is None else product[:, mask]
            for collector, values, margin in zip(collectors, squared, bound, strict=True):
                collector.offer(values, rows, float(margin))
        found += [collector.rows for collector in collectors]
    return found


def _multiply(
    block: NDArray[Any], queries: Features, buffer: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Products (q, n) of a block's rows with queries; few queries need no float32 of float16."""
    if len(queries) > _FEW_QUERIES or suffices(1, block.size):
        out[:] = queries @ _widened(block, buffer).T
        return
    from hashlens.index import kernels

    values = _frozen(block)
    parts = split(len(block), thread_count())
    run_all([partial(kernels.products, values[a:b], queries, out[:, a:b]) for a, b in parts])


class _Collector:
    """Keeps one query's rows that may be among its k nearest."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._margin = 0.0
        self._limit = np.inf  # k-th smallest value seen
        self._values = np.zeros(0, np.float32)
        self.rows: Ids = np.zeros(0, np.int64)

    def offer(self, values: NDArray[np.float32], rows: Ids, margin: float) -> None:
        self._margin = max(self._margin, margin)
        near = values <= self._limit + 2 * self._margin
        if not near.any():
            return
        self._values = np.concatenate([self._values, values[near]])
        self.rows = np.concatenate([self.rows, rows[near]])
        if len(self._values) >= self._k:
            self._limit = float(np.partition(self._values, self._k - 1)[self._k - 1])
            keep = self._values <= self._limit + 2 * self._margin
            self._values, self.rows = self._values[keep], self.rows[keep]


def _rows_at_a_time(features: NDArray[Any]) -> int:
    width: int = features.shape[1]
    return max(1, min(len(features), _BLOCK_BYTES // (4 * max(width, 1))))


def _widened(block: NDArray[Any], buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """A block as float32, in ``buffer`` where it is float16."""
    if block.dtype != np.float16:
        return block
    if suffices(1, block.size):
        return block.astype(np.float32)
    from hashlens.index import kernels

    bits, values = _frozen(block), buffer[: len(block)]
    parts = split(len(block), thread_count())
    run_all([partial(kernels.widen, bits[a:b], values[a:b]) for a, b in parts])
    return values


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only plain view, of float16 the bits: one type for the compiler, whoever owns it."""
    view = array.view(np.uint16 if array.dtype == np.float16 else array.dtype).view(np.ndarray)
    view.flags.writeable = False
    return view
