"""Compiled search kernels: arrays in, arrays out, no objects.

Codes are held in blocks (see ``packing``), so that one vector instruction counts the bits of one
word of several codes, and a block stays in the first-level cache while every query of a batch is
compared with it. Rows of packed bytes are turned into such a block on the way, which costs little
compared with a batch of queries.

A group of GROUP codes is skipped if its smallest distance is not below the query's limit. Almost
all are, so a query costs w exclusive-ors, w popcounts, w - 1 additions and one minimum per vector
of codes. ``words`` is a tuple whose length is w: the compiler sees the length in its type and
unrolls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hashlens.codes.packing import BLOCK, MAX_BITS
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

_TURNED_WORDS = 4  # widths that vector shuffles turn into columns in few instructions
_ZERO = np.uint64(0)


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
            word = _ZERO
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
