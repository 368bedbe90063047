"""The exhaustive scan in NumPy alone: a process's first searches need not wait for numba."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.database import CodeBlocks
from hashlens.codes.packing import BLOCK, to_words
from hashlens.types import Ids

# Numbers that NumPy compares in about a tenth of the time in which numba and kernels are loaded.
_ENOUGH = 1 << 26
_CALL = 1 << 14  # what the calls for one query cost, in such numbers
_CODES_AT_A_TIME = 16 * BLOCK
_TOO_FAR = np.uint16(0xFFFF)
_done = 0
_loader: list[int] = []  # the thread that loads the kernels while others go on without


def suffices(queries: int, numbers: int) -> bool:
    """Whether to compare ``numbers`` words or values with each query in NumPy.

    It is so until the kernels are loaded; and a process that has compared this way for a good
    part of the time that loading them takes is better off with them.
    """
    global _done
    if _loader:
        return threading.get_ident() not in _loader
    if "numba" in sys.modules:
        return False
    _done += queries * (numbers + _CALL)
    return _done <= _ENOUGH


def load_kernels(search: Callable[[], object]) -> None:
    """Load the kernels by a search in this thread, while all other threads search in NumPy."""
    if "hashlens.codes.scan" in sys.modules:
        search()
        return
    _loader.append(threading.get_ident())
    try:
        search()
    finally:
        _loader.remove(threading.get_ident())


class LightScan(NamedTuple):
    """A scan of a database for some queries: as ``Scan``, with the same results."""

    codes: CodeBlocks
    queries: NDArray[np.uint64]
    allowed: NDArray[np.bool_]

    def nearest(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """The k nearest of each query, (q, k); at least k codes must be allowed."""
        distances = np.empty((len(self.queries), k), np.uint16)
        ids = np.empty(distances.shape, np.int64)
        for query, near, near_ids in zip(self.queries, distances, ids, strict=True):
            found = self._distances(query)
            near[:], near_ids[:] = _ordered(found, np.partition(found, k - 1)[k - 1], k)
        return distances, ids

    def within(self, radius: int) -> tuple[NDArray[np.uint16], Ids, NDArray[np.int64]]:
        """Codes within ``radius`` bits: distances, ids, and where each query's results begin."""
        farthest = np.uint16(min(radius, 0xFFFE))
        found = [_ordered(self._distances(query), farthest, None) for query in self.queries]
        offsets = np.cumsum([0, *(len(ids) for _, ids in found)])
        return np.concatenate([d for d, _ in found]), np.concatenate([i for _, i in found]), offsets

    def _distances(self, query: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Distances (n,) of one query to all codes; those that are not allowed are too far."""
        codes = self.codes
        rows = codes.data.reshape(-1, codes.n_bytes)
        used = -(-codes.n // BLOCK)
        distances = np.zeros(used * BLOCK, np.uint16)
        for start in range(0, codes.n, _CODES_AT_A_TIME):
            if len(rows):
                columns = to_words(rows[start : start + _CODES_AT_A_TIME]).T
            else:
                last = min((start + _CODES_AT_A_TIME) // BLOCK, used)  # there may be room for more
                blocks = codes.blocks[start // BLOCK : last]
                columns = blocks.transpose(1, 0, 2)
            out = distances[start : start + columns[0].size].reshape(columns[0].shape)
            for column, word in zip(columns, query, strict=True):
                out += np.bitwise_count(column ^ word)
        if len(self.allowed):
            distances[: codes.n][~self.allowed] = _TOO_FAR
        return distances[: codes.n]


def _ordered(
    distances: NDArray[np.uint16], farthest: np.uint16, k: int | None
) -> tuple[NDArray[np.uint16], Ids]:
    """The first k, or all, of those not beyond ``farthest``, by (distance, id): distances, ids."""
    near = np.flatnonzero(distances <= farthest)
    ids = near[np.argsort(distances[near], kind="stable")[:k]]
    return distances[ids], ids
