"""The exhaustive scan: every code is compared with every query, over threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes import kernels
from hashlens.codes.database import CodeBlocks, blocks_of_rows
from hashlens.codes.packing import BLOCK, from_words
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.codes.vector import FAR
from hashlens.types import Ids

# Candidates are buffered if at most one code in so many is wanted, else all are counted.
_BUFFERED_PART = 16
_BUFFER_BYTES = 1 << 27
_COMPARED_BY_ONE = 1 << 18  # comparisons that one thread does before another would be awake
# If k and the batch are large, one code in so many is searched first, to guess how far the k-th
# nearest is: candidates beyond it are then never collected.
_SAMPLED = 67
_SAMPLED_K, _SAMPLED_QUERIES, _SAMPLED_CODES = 100, 8, 1 << 17


class Scan:
    """A scan of a database for some queries."""

    def __init__(
        self, codes: CodeBlocks, queries: NDArray[np.uint64], allowed: NDArray[np.bool_]
    ) -> None:
        self._codes, self._queries, self._allowed = codes, queries, allowed
        self._words = codes.words
        blocks = -(-codes.n // BLOCK)
        worth = 1 + codes.n * len(queries) // _COMPARED_BY_ONE
        # ranges of blocks, one per thread
        self._parts = split(blocks, min(worth, thread_count())) or [(0, 0)]

    def nearest(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """The k nearest of each query, (q, k); at least k codes must be allowed."""
        if k * _BUFFERED_PART <= self._codes.n:
            return self._nearest_of_few(k)
        return self._nearest_of_many(k)

    def within(self, radius: int) -> tuple[NDArray[np.uint16], Ids, NDArray[np.int64]]:
        """Codes within ``radius`` bits: distances, ids, and where each query's results begin."""
        levels = min(radius, 64 * len(self._words)) + 1
        histograms = self._count(levels)
        totals = histograms.sum(axis=(0, 2))
        offsets = np.concatenate([[0], np.cumsum(totals)]).astype(np.int64)
        limits = np.full(len(self._queries), levels)
        found = self._place(histograms, limits, offsets[:-1], offsets[1:], int(offsets[-1]))
        return *found, offsets

    def _nearest_of_few(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """Top-k through buffers of candidates, for k much smaller than n."""
        q, capacity = len(self._queries), max(2 * k, k + 64)
        distances, ids = np.empty((q, k), np.uint16), np.empty((q, k), np.int64)
        step = max(1, _BUFFER_BYTES // (10 * capacity * len(self._parts)))
        for at in range(0, q, step):
            queries = self._queries[at : at + step]
            out = distances[at : at + step], ids[at : at + step]
            too_few = self._collect(
                queries, k, capacity, reach(self._codes, queries, self._allowed, k), out
            )
            if len(too_few):
                again = distances[at + too_few], ids[at + too_few]
                unlimited = np.full(len(too_few), FAR)
                self._collect(queries[too_few], k, capacity, unlimited, again)
                distances[at + too_few], ids[at + too_few] = again
        return distances, ids

    def _collect(
        self,
        queries: NDArray[np.uint64],
        k: int,
        capacity: int,
        limits: NDArray[np.uint64],
        out: tuple[NDArray[np.uint16], Ids],
    ) -> NDArray[np.int64]:
        """Top-k among codes below each query's limit; return the queries with fewer than k."""
        shape = (len(self._parts), len(queries), capacity)
        found, found_ids = np.empty(shape, np.uint16), np.empty(shape, np.int64)
        counts = np.zeros(shape[:2], np.int64)
        own = [(k, limits, *buffers) for buffers in zip(found, found_ids, counts, strict=True)]
        self._run(kernels.scan_nearest, queries, own)
        parts = split(len(queries), len(self._parts) if len(queries) > 8 else 1)
        merge = partial(kernels.merge_nearest, found, found_ids, counts)
        run_all([partial(merge, first, last, *out) for first, last in parts])
        return np.flatnonzero(counts.sum(axis=0) < k)

    def _nearest_of_many(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """Top-k by counting all distances first, for k that is a large part of n."""
        q = len(self._queries)
        histograms = self._count(64 * len(self._words) + 1)
        reached = histograms.sum(axis=0).cumsum(axis=1)
        limits = (reached < k).sum(axis=1) + 1
        starts = np.arange(q, dtype=np.int64) * k
        distances, ids = self._place(histograms, limits, starts, starts + k, q * k)
        return distances.reshape(q, k), ids.reshape(q, k)

    def _count(self, levels: int) -> NDArray[np.int64]:
        """Codes at each distance below ``levels``, (t, q, levels), in each of t parts."""
        q = len(self._queries)
        histograms = np.zeros((len(self._parts), q, levels), np.int64)
        nothing = np.zeros(q, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.int64)
        limits = np.full(q, levels, np.uint64)
        own = [(limits, part, *nothing) for part in histograms]
        self._run(kernels.place_within, self._queries, own)
        return histograms

    def _place(
        self,
        histograms: NDArray[np.int64],
        limits: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        size: int,
    ) -> tuple[NDArray[np.uint16], Ids]:
        """Write each query's codes below its limit in order, from its start to its end."""
        totals = histograms.sum(axis=0)
        places = np.cumsum(histograms, axis=0) - histograms  # those of earlier parts
        places += (np.cumsum(totals, axis=1) - totals + starts[:, None])[None]
        distances, ids = np.empty(size, np.uint16), np.empty(size, np.int64)
        own = [(limits.astype(np.uint64), part, ends, distances, ids) for part in places]
        self._run(kernels.place_within, self._queries, own)
        return distances, ids

    def _run(
        self,
        kernel: Callable[..., None],
        queries: NDArray[np.uint64],
        arguments: list[tuple[Any, ...]],
    ) -> None:
        """Run a kernel over the parts of the database, each with its own last arguments."""
        codes, tasks = self._codes, []
        for (first, last), own in zip(self._parts, arguments, strict=True):
            blocks = np.empty_like(codes.blocks) if len(codes.data) else codes.blocks
            searched = blocks, codes.data, codes.n_bytes, first, last, codes.n
            tasks.append(partial(kernel, *searched, queries, self._words, self._allowed, *own))
        run_all(tasks)


def reach(
    codes: CodeBlocks, queries: NDArray[np.uint64], allowed: NDArray[np.bool_], k: int
) -> NDArray[np.uint64]:
    """Distances that the k nearest hardly reach, guessed from a sample of codes; or FAR."""
    few = k < _SAMPLED_K or len(queries) < _SAMPLED_QUERIES or codes.n < _SAMPLED_CODES
    if few or len(allowed):
        return np.full(len(queries), FAR)
    if len(codes.data):
        sample = codes.data.reshape(codes.n, codes.n_bytes)[::_SAMPLED]
    else:
        whole = codes.blocks[: codes.n // BLOCK, :, :: _SAMPLED - 3]
        words = whole.transpose(0, 2, 1).reshape(-1, len(codes.words))
        sample = from_words(words, codes.n_bytes)
    expected = k * len(sample) / codes.n
    rank = int(expected + 4 * expected**0.5) + 4
    found, _ = Scan(blocks_of_rows(sample), queries, allowed).nearest(rank)
    return found[:, -1].astype(np.uint64) + np.uint64(1)
