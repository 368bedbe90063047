"""Searching codes that lie in rings: queries over threads, results in order (distance, id)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hashlens.codes import ring_kernels
from hashlens.codes.rings import Rings, as_blocks, assign
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.protocols import Ids

_ID = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_SORTED_FROM = 8


class RingSearch:
    """A search of clustered codes for some queries; parameters as in ``Scan``."""

    def __init__(
        self,
        rings: Rings,
        words: tuple[int, ...],
        queries: NDArray[np.uint64],
        allowed: NDArray[np.bool_],
    ) -> None:
        self._rings, self._words = rings, words
        self._queries, self._allowed = queries, allowed

    def nearest(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """The k nearest of each query, (q, k); at least k codes must be allowed."""
        keys = np.empty((len(self._queries), k), np.uint64)
        distances = np.empty(keys.shape, np.uint16)
        ids = np.empty(keys.shape, np.int64)

        def answer(order: NDArray[np.int64]) -> None:
            ring_kernels.nearest_in_rings(
                self._rings, self._queries, order, self._words, self._allowed, k, keys
            )

        def sort(first: int, last: int) -> None:
            part = keys[first:last]
            part.sort(axis=1)
            distances[first:last] = part >> _SHIFT
            ids[first:last] = part & _ID

        self._over_threads(answer)
        run_all([partial(sort, *part) for part in split(len(keys), _threads(keys.size))])
        return distances, ids

    def within(self, radius: int) -> tuple[NDArray[np.uint16], Ids, NDArray[np.int64]]:
        """Codes within ``radius`` bits: distances, ids, and where each query's begin."""
        counts = np.zeros(len(self._queries), np.int64)
        limit = np.uint64(min(radius, 64 * len(self._words)) + 1)
        found: dict[int, NDArray[np.uint64]] = {}

        def answer(order: NDArray[np.int64]) -> None:
            keys = ring_kernels.within_rings(
                self._rings, self._queries, order, self._words, self._allowed, limit, counts
            )
            pieces = np.split(keys, np.cumsum(counts[order])[:-1])
            for i, piece in zip(order.tolist(), pieces, strict=True):
                piece.sort()
                found[i] = piece

        self._over_threads(answer)
        keys = np.concatenate([found[i] for i in range(len(counts))])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return (keys >> _SHIFT).astype(np.uint16), (keys & _ID).astype(np.int64), offsets

    def _over_threads(self, answer: Callable[[NDArray[np.int64]], None]) -> None:
        """Let threads answer queries, those near the same pivot one after another for the cache."""
        order = np.arange(len(self._queries))
        if len(order) >= _SORTED_FROM and len(self._rings.starts) > 1:
            pivots = np.ascontiguousarray(self._rings.pivots[:, : len(self._rings.starts) - 1].T)
            labels, _ = assign(as_blocks(self._queries), len(order), pivots, self._words)
            order = np.argsort(labels, kind="stable")
        run_all([partial(answer, order[a:b]) for a, b in split(len(order), thread_count())])


def _threads(size: int) -> int:
    """Threads that are worth waking for a light pass over ``size`` numbers."""
    return thread_count() if size > 1 << 15 else 1
