"""The exhaustive scan: every code is compared with every query, over threads.

Codes are held in blocks (see ``packing``), so that one vector instruction counts the bits of one
word of several codes, and a block stays in the first-level cache while every query of a batch is
compared with it. Rows of packed bytes are turned into such a block on the way, which costs little
compared with a batch of queries.

A group of GROUP codes is skipped if its smallest distance is not below the query's limit. Almost
all are, so a query costs w exclusive-ors, w popcounts, w - 1 additions and one minimum per vector
of codes. In the kernels ``words`` is a tuple whose length is w: the compiler sees the length in its
type and unrolls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hashlens.codes.database import CodeBlocks, blocks_of_rows
from hashlens.codes.packing import BLOCK, MAX_BITS, from_words
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.codes.vector import (
    FAR,
    GROUP,
    LANES,
    ONE,
    any_below,
    code_distance,
    load_codes,
    mask_below,
    trailing_zeros,
    unaligned_word,
)
from hashlens.types import Ids

# Candidates are buffered if at most one code in so many is wanted, else all are counted.
_BUFFERED_PART = 16
_BUFFER_BYTES = 1 << 27
_COMPARED_BY_ONE = 1 << 18  # comparisons that one thread does before another would be awake
# If k and the batch are large, one code in so many is searched first, to guess how far the k-th
# nearest is: candidates beyond it are then never collected.
_SAMPLED = 67
_SAMPLED_K, _SAMPLED_QUERIES, _SAMPLED_CODES = 100, 8, 1 << 17
_TURNED_WORDS = 4  # widths that vector shuffles turn into columns in few instructions


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
        self._run(scan_nearest, queries, own)
        parts = split(len(queries), len(self._parts) if len(queries) > 8 else 1)
        merge = partial(merge_nearest, found, found_ids, counts)
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
        self._run(place_within, self._queries, own)
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
        self._run(place_within, self._queries, own)
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


@njit(nogil=True, cache=True)
def load_rows(
    data: Any, n_bytes: int, first: int, count: int, block: Any, at: int, words: Any
) -> None:
    """Turn ``count`` packed rows, from ``first`` on, into columns of a block, from ``at`` on.

    Parameters
    ----------
    data : ndarray of shape (n * n_bytes,), uint8
        All packed rows; bytes past a row's end count as zero.
    n_bytes : int
        Bytes per row.
    first, count, at : int
        Rows to read, and the column of the first.
    block : ndarray of shape (w, BLOCK), uint64
        Receives the codes.
    words : tuple of length w
        Gives w to the compiler.
    """
    last_bytes = n_bytes - 8 * (len(words) - 1)
    keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(8 * (8 - last_bytes))
    # rows that can be read eight bytes at a time without passing the end of the data
    safe = min(count, (len(data) - 8 * len(words)) // n_bytes - first + 1)
    done = 0
    if n_bytes == 8 * len(words) and len(words) <= _TURNED_WORDS:
        while done + LANES <= count:
            load_codes(data, (first + done) * n_bytes, block, at + done, words)
            done += LANES
    for j in range(done, safe):
        offset = (first + j) * n_bytes
        for i in range(len(words) - 1):
            block[i, at + j] = unaligned_word(data, offset + 8 * i)
        block[len(words) - 1, at + j] = unaligned_word(data, offset + 8 * (len(words) - 1)) & keep
    for j in range(max(safe, done), count):
        for i in range(len(words)):
            word = np.uint64(0)
            for b in range(8 * i, min(8 * i + 8, n_bytes)):
                word |= np.uint64(data[(first + j) * n_bytes + b]) << np.uint64(8 * (b - 8 * i))
            block[i, at + j] = word


@njit(nogil=True, cache=True)
def _keep_nearest(distances: Any, ids: Any, count: int, k: int, histogram: Any) -> np.uint64:
    """Move the k nearest of ``count`` candidates to the front, in order; return the k-th distance.

    Among equal distances the first stay.
    """
    histogram[:] = 0
    for c in range(count):
        histogram[distances[c]] += 1
    nearer, kth = 0, 0
    while nearer + histogram[kth] < k:
        nearer += histogram[kth]
        kth += 1
    ties, kept = k - nearer, 0
    for c in range(count):
        distance = distances[c]
        if distance > kth or (distance == kth and ties == 0):
            continue
        ties -= distance == kth
        distances[kept] = distance
        ids[kept] = ids[c]
        kept += 1
    return np.uint64(kth)


@njit(nogil=True, cache=True)
def scan_nearest(
    blocks: Any, data: Any, n_bytes: int, first: int, last: int, n: int, queries: Any, words: Any,
    allowed: Any, k: int, shared: Any, distances: Any, ids: Any, counts: Any,
) -> None:  # fmt: skip
    """Collect candidates for the k nearest codes of each query from blocks ``first`` to ``last``.

    Parameters
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        The database; or one block to work in, where the codes are read from ``data``.
    data : ndarray of shape (n * n_bytes,), uint8
        Packed rows; empty where ``blocks`` holds the codes.
    n_bytes : int
        Bytes per row of ``data``.
    first, last, n : int
        Range of blocks to search; number of codes in all.
    queries : ndarray of shape (q, w), uint64
        Codes to search for.
    words : tuple of length w
        Gives w to the compiler.
    allowed : ndarray of shape (n,) or (0,), bool
        Codes that may be found; empty: all.
    k : int
        Results per query, at most half of what a buffer holds.
    shared : ndarray of shape (q,), uint64
        Distances that no result reaches, shared by all searching threads; read and lowered
        without a lock, since any value ever written is valid.
    distances, ids, counts : ndarrays of shape (q, c), (q, c) and (q,), uint16, int64, int64
        Buffers of candidates, in order of id.
    """
    histogram = np.zeros(64 * len(words) + 1, np.int64)
    limits = np.full(len(queries), FAR)
    for b in range(first, last):
        inside = min(BLOCK, n - b * BLOCK)
        if len(data):
            load_rows(data, n_bytes, b * BLOCK, inside, blocks[0], 0, words)
        block = blocks[0 if len(data) else b]
        for i in range(len(queries)):
            limit = min(limits[i], shared[i])
            query = queries[i]
            for start in range(0, inside, GROUP):
                if not any_below(block, start, query, limit, words):
                    continue
                mask = mask_below(block, start, query, limit, words)
                while mask:
                    j = start + np.int64(trailing_zeros(mask))
                    mask &= mask - ONE
                    if j >= inside or (len(allowed) and not allowed[b * BLOCK + j]):
                        continue
                    distance = code_distance(block, j, query, words)
                    if distance >= limit:  # lowered since the mask was made
                        continue
                    distances[i, counts[i]] = distance
                    ids[i, counts[i]] = b * BLOCK + j
                    counts[i] += 1
                    if counts[i] == distances.shape[1]:
                        limit = _keep_nearest(distances[i], ids[i], counts[i], k, histogram)
                        counts[i] = k
                        limits[i] = limit  # later codes have higher ids: ties lose
                        shared[i] = min(shared[i], limit + ONE)


@njit(nogil=True, cache=True)
def merge_nearest(
    distances: Any, ids: Any, counts: Any, first: int, last: int, out: Any, out_ids: Any
) -> None:
    """Order the candidates of queries ``first`` to ``last`` by (distance, id), keep the nearest.

    Parameters
    ----------
    distances, ids, counts : ndarrays of shape (t, q, c), (t, q, c) and (t, q)
        Buffers of t threads; a later thread has higher ids.
    first, last : int
        Range of queries.
    out, out_ids : ndarrays of shape (q, k), uint16 and int64
        Results.
    """
    starts = np.zeros(MAX_BITS + 2, np.int64)
    k = out.shape[1]
    for i in range(first, last):
        farthest = 0
        for t in range(len(distances)):
            for c in range(counts[t, i]):
                if distances[t, i, c] > farthest:
                    farthest = distances[t, i, c]
        starts[: farthest + 2] = 0
        for t in range(len(distances)):
            for c in range(counts[t, i]):
                starts[distances[t, i, c] + 1] += 1
        for d in range(1, farthest + 2):
            starts[d] += starts[d - 1]
        for t in range(len(distances)):
            for c in range(counts[t, i]):
                distance = distances[t, i, c]
                place = starts[distance]
                starts[distance] += 1
                if place < k:
                    out[i, place] = distance
                    out_ids[i, place] = ids[t, i, c]


@njit(nogil=True, cache=True)
def place_within(
    blocks: Any, data: Any, n_bytes: int, first: int, last: int, n: int, queries: Any, words: Any,
    allowed: Any, limits: Any, places: Any, ends: Any, distances: Any, ids: Any,
) -> None:  # fmt: skip
    """Count codes nearer than each query's limit by distance, and write them to their places.

    Called twice: with no room for results, ``places`` that begin at 0 become histograms, and these
    say where in the order (distance, id) the places are.

    Parameters
    ----------
    blocks, data, n_bytes, first, last, n, queries, words, allowed
        As in ``scan_nearest``.
    limits : ndarray of shape (q,), uint64
        Distances that results stay below.
    places : ndarray of shape (q, d), int64
        Where the next code of each query and distance goes; advanced.
    ends : ndarray of shape (q,), int64
        A code whose place is at this or beyond is not written.
    distances, ids : ndarrays of shape (m,), uint16 and int64
        Results.
    """
    for b in range(first, last):
        inside = min(BLOCK, n - b * BLOCK)
        if len(data):
            load_rows(data, n_bytes, b * BLOCK, inside, blocks[0], 0, words)
        block = blocks[0 if len(data) else b]
        for i in range(len(queries)):
            query = queries[i]
            for start in range(0, inside, GROUP):
                if not any_below(block, start, query, limits[i], words):
                    continue
                mask = mask_below(block, start, query, limits[i], words)
                while mask:
                    j = start + np.int64(trailing_zeros(mask))
                    mask &= mask - ONE
                    if j >= inside or (len(allowed) and not allowed[b * BLOCK + j]):
                        continue
                    distance = code_distance(block, j, query, words)
                    place = places[i, distance]
                    places[i, distance] += 1
                    if place < ends[i]:
                        distances[place] = distance
                        ids[place] = b * BLOCK + j
