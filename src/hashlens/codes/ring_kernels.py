"""Compiled kernels of the ring layout (``rings.py``): assigning, moving, searching."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hashlens.codes.kernels import BLOCK
from hashlens.codes.vector import (
    GROUP,
    any_below,
    code_distance,
    mask_below,
    trailing_zeros,
)

_GROUPS = BLOCK // GROUP
_FAR = np.uint64(1 << 62)
_ONE = np.uint64(1)
_SHIFT = np.uint64(32)


@njit(nogil=True, cache=True)
def assign(
    blocks: Any, first: int, last: int, n: int, pivots: Any, words: Any, labels: Any, radii: Any
) -> None:
    """Find the nearest pivot of each code of blocks ``first`` to ``last``, and its distance.

    Parameters
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        Codes, words as columns.
    first, last, n : int
        Range of blocks; number of codes in all.
    pivots : ndarray of shape (p, w), uint64
        At most 65,536 pivots.
    words : tuple of length w
        Gives w to the compiler.
    labels, radii : ndarrays of shape (n,), uint16
        Results; among equally near pivots the first.
    """
    best = np.empty(BLOCK, np.uint64)
    for b in range(first, last):
        block, inside = blocks[b], min(BLOCK, n - b * BLOCK)
        best[:] = _FAR
        for p in range(len(pivots)):
            pivot = pivots[p]
            for j in range(inside):
                found = (code_distance(block, j, pivot, words) << np.uint64(16)) | np.uint64(p)
                best[j] = min(best[j], found)
        for j in range(inside):
            labels[b * BLOCK + j] = best[j] & np.uint64(0xFFFF)
            radii[b * BLOCK + j] = best[j] >> np.uint64(16)


@njit(nogil=True, cache=True)
def move_codes(blocks: Any, source: Any, target: Any, place: Any) -> None:
    """Copy the codes at positions ``source`` of ``blocks`` to positions ``place`` of ``target``."""
    for i in range(len(source)):
        s, p = source[i], place[i]
        for word in range(blocks.shape[1]):
            target[p // BLOCK, word, p % BLOCK] = blocks[s // BLOCK, word, s % BLOCK]


@njit(nogil=True, cache=True)
def _keep_smallest(keys: Any, count: int, k: int, histogram: Any) -> Any:
    """Move the k smallest of ``count`` keys to the front, in no order; return the largest kept.

    A key is a distance, 32 bits up, and an id.
    """
    histogram[:] = 0
    for c in range(count):
        histogram[keys[c] >> _SHIFT] += 1
    nearer, kth = 0, 0
    while nearer + histogram[kth] < k:
        nearer += histogram[kth]
        kth += 1
    ties = np.empty(histogram[kth], np.uint64)
    kept, tied = 0, 0
    for c in range(count):
        key = keys[c]
        distance = np.int64(key >> _SHIFT)
        if distance < kth:
            keys[kept] = key
            kept += 1
        elif distance == kth:
            ties[tied] = key
            tied += 1
    if kept + tied > k:
        ties.sort()
    keys[kept:k] = ties[: k - kept]
    return ties[k - kept - 1] if kept + tied > k else ties.max()


@njit(nogil=True, cache=True)
def _scan_groups(
    rings: Any,
    first: int,
    last: int,
    away: int,
    query: Any,
    words: Any,
    allowed: Any,
    k: int,
    limit: np.uint64,
    bound: np.uint64,
    keys: Any,
    count: int,
    histogram: Any,
) -> Any:
    """Add codes of groups ``first`` to ``last`` to the candidates; return what changed.

    ``away`` is the distance from the query to the groups' pivot, -1 where they have none. Codes
    at ``limit`` bits or more, and keys at ``bound`` or more, are of no interest. With ``k`` = 0
    every other code is collected, in as many keys as it takes.
    """
    for g in range(first, last):
        if away >= 0:
            least = max(rings.nearest[g] - away, away - rings.farthest[g])
            if least >= np.int64(limit):
                continue
        block = rings.blocks[g // _GROUPS]
        start = (g % _GROUPS) * GROUP
        if not any_below(block, start, query, limit, words):
            continue
        mask = mask_below(block, start, query, limit, words)
        while mask:
            j = np.int64(trailing_zeros(mask))
            mask &= mask - _ONE
            if g * GROUP + j >= rings.size:
                break
            code = rings.ids[g * GROUP + j]
            if code < 0 or (len(allowed) and not allowed[code]):
                continue
            key = (code_distance(block, start + j, query, words) << _SHIFT) | np.uint64(code)
            if key >= bound:
                continue
            keys[count] = key
            count += 1
            if count < len(keys):
                continue
            if k == 0:
                longer = np.empty(2 * len(keys), np.uint64)
                longer[:count] = keys
                keys = longer
            else:
                bound = _keep_smallest(keys, count, k, histogram)
                count = k
                limit = min(limit, (bound >> _SHIFT) + _ONE)
    return limit, bound, keys, count


@njit(nogil=True, cache=True)
def _search(
    rings: Any,
    query: Any,
    words: Any,
    allowed: Any,
    k: int,
    limit: np.uint64,
    keys: Any,
    count: int,
    histogram: Any,
    work: Any,
) -> Any:
    """Collect a query's candidates: clusters by what they could hold at best, then the rest.

    ``work`` (3, BLOCK), int64: distance to each pivot, least distance to its codes, order.
    """
    pivots = len(rings.starts) - 1
    away, least, order = work[0], work[1], work[2]
    histogram[:] = 0
    for p in range(pivots):
        away[p] = np.int64(code_distance(rings.pivots, p, query, words))
    for p in range(pivots):
        a, b = rings.starts[p], rings.starts[p + 1]
        if a == b:
            least[p] = len(histogram) - 1
        else:
            least[p] = max(0, rings.nearest[a] - away[p], away[p] - rings.farthest[b - 1])
        histogram[least[p]] += 1
    total = 0
    for d in range(len(histogram)):
        here = histogram[d]
        histogram[d] = total
        total += here
    for p in range(pivots):
        order[histogram[least[p]]] = p
        histogram[least[p]] += 1
    bound = _FAR
    # Codes in no cluster come first, as they must be looked at anyhow and lower the bound.
    limit, bound, keys, count = _scan_groups(
        rings, rings.starts[-1], (rings.size + GROUP - 1) // GROUP, -1,
        query, words, allowed, k, limit, bound, keys, count, histogram,
    )  # fmt: skip
    for o in range(pivots):
        p = order[o]
        if least[p] >= np.int64(limit):
            break
        limit, bound, keys, count = _scan_groups(
            rings, rings.starts[p], rings.starts[p + 1], away[p],
            query, words, allowed, k, limit, bound, keys, count, histogram,
        )  # fmt: skip
    return keys, count


@njit(nogil=True, cache=True)
def nearest_in_rings(
    rings: Any, queries: Any, order: Any, words: Any, allowed: Any, k: int, out: Any
) -> None:
    """The k nearest codes of some queries, as keys in no order.

    Parameters
    ----------
    rings : Rings
        The database.
    queries : ndarray of shape (q, w), uint64
        Codes to search for.
    order : ndarray of shape (m,), int64
        The queries to answer, best so that neighbours are near each other.
    words : tuple of length w
        Gives w to the compiler.
    allowed : ndarray of shape (n,) or (0,), bool
        Codes that may be found, at least k; empty: all.
    k : int
        Results a query, at least 1.
    out : ndarray of shape (q, k), uint64
        Results: a distance, 32 bits up, and an id.
    """
    histogram = np.zeros(64 * len(words) + 2, np.int64)
    work = np.empty((3, BLOCK), np.int64)
    keys = np.empty(max(2 * k, k + GROUP), np.uint64)
    for i in order:
        _, count = _search(rings, queries[i], words, allowed, k, _FAR, keys, 0, histogram, work)
        if count > k:
            _keep_smallest(keys, count, k, histogram)
        out[i] = keys[:k]


@njit(nogil=True, cache=True)
def within_rings(
    rings: Any, queries: Any, order: Any, words: Any, allowed: Any, limit: np.uint64, counts: Any
) -> Any:
    """All codes nearer than ``limit`` of some queries: keys in no order, one query after another.

    Parameters are as in ``nearest_in_rings``; ``counts`` (q,), int64, receives how many there are.
    """
    histogram = np.zeros(64 * len(words) + 2, np.int64)
    work = np.empty((3, BLOCK), np.int64)
    keys = np.empty(1024, np.uint64)
    total = 0
    for i in order:
        before = total
        keys, total = _search(
            rings, queries[i], words, allowed, 0, limit, keys, total, histogram, work
        )
        counts[i] = total - before
    return keys[:total]
