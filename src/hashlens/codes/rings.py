"""Exact search that skips most codes: rings around pivots, and the triangle inequality.

Each code belongs to its nearest pivot. The codes of a pivot are its *cluster*, sorted by their
distance to the pivot, so that GROUP neighbouring codes form a thin ring. A code of a ring between
distances ``a`` and ``b`` of a pivot that is ``d`` bits away from the query is at least
``max(d - b, a - d)`` bits away from the query; rings that cannot hold a result are skipped.
The queries of a batch go over the clusters together, so each cluster is read from memory once.
The idea is iDistance (Jagadish, Ooi, Tan, Yu, Zhang, ACM TODS 30(2), 2005) in Hamming space, with
pivots by k-majority. It pays where codes are clustered, as codes learned from class labels are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hashlens.codes.database import CodeBlocks, with_room
from hashlens.codes.packing import BLOCK, to_blocks, words_at
from hashlens.codes.scan import reach
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.codes.vector import (
    FAR,
    GROUP,
    ONE,
    any_below,
    code_distance,
    mask_below,
    trailing_zeros,
)
from hashlens.types import Ids

MIN_CODES = 1 << 16  # fewer codes are scanned as fast as pivots could be compared
_MAX_PIVOTS = BLOCK
_CODES_PER_PIVOT = 1024
_SAMPLE_PER_PIVOT = 32
_ROUNDS = 3
_COUNTED = 1 << 20  # codes counted at a time
# What a search costs, as a part of a scan: the codes of the rings that it needs, and some more for
# clusters of which it needs only a part. Fitted to processor time: 0.9 and 1.2 of a scan for ITQ
# codes of 48 and 64 bits, a hundredth for codes around centres.
_SPREAD_QUERIES, _A_CLUSTER, _WORTH = 64, 4, 0.95
_SORTED_FROM = 8  # so many queries are put into the order of their pivots
_FEW = 64  # so many results are sorted in the kernel as fast as NumPy is called
_ONE_THREAD = 1 << 15  # a light pass over fewer numbers is not worth waking a thread
# A candidate is a key: its distance, 32 bits up, and its id. Smaller is nearer, ties by id.
_SHIFT, _ID = np.uint64(32), np.uint64(0xFFFFFFFF)
_GROUPS = BLOCK // GROUP
_NEVER = 1 << 14  # a distance that no code has
# Queries that go over the clusters together, and keys that these have room for at most.
_TOGETHER, _KEYS_TOGETHER = 32, 1 << 20


class Rings(NamedTuple):
    """Codes in clusters, and codes added since, as the kernels read them."""

    # (m, w, BLOCK): codes, words as columns; each cluster starts at a multiple of GROUP
    blocks: NDArray[np.uint64]
    # (>= m * BLOCK,): the id of the code at each position, -1 where there is none
    ids: NDArray[np.int32]
    pivots: NDArray[np.uint64]  # (w, BLOCK): the pivots, words as columns
    starts: NDArray[np.int64]  # (p + 1,): cluster c has the groups ``starts[c]:starts[c + 1]``
    # (starts[-1],): smallest and largest distance of each group's codes to their pivot
    nearest: NDArray[np.int64]
    farthest: NDArray[np.int64]
    clustered: int  # number of codes in clusters: those with the lowest ids
    n: int  # number of all codes; ids from here on are not there
    size: int  # positions in use; those past ``starts[-1] * GROUP`` were added later, to no cluster

    @property
    def loose(self) -> int:
        """Position of the first code that was added later."""
        return int(self.starts[-1]) * GROUP

    def first(self, n: int) -> Rings:
        """The codes with ids below n, in the same memory."""
        return self._replace(n=n, size=self.loose + max(n - self.clustered, 0))


def worth_queries(n: int) -> int:
    """Number of queries whose scans take about as long as clustering ``n`` codes."""
    return 2 * _pivot_count(n)


def build(
    blocks: NDArray[np.uint64], ids: NDArray[np.int32], size: int, words: tuple[int, ...]
) -> Rings | None:
    """Cluster codes around pivots; None if they are spread so evenly that it would not pay.

    ``blocks`` (m, w, BLOCK) hold codes at ``size`` positions, ``ids`` the id at each or -1;
    without any, a code's position is its id. Besides the result it takes four bytes per code.
    """
    n = int(np.count_nonzero(ids[:size] >= 0)) if len(ids) else size
    count = _pivot_count(n)
    drawn = np.unique(np.random.default_rng(0).integers(0, size, count * _SAMPLE_PER_PIVOT))
    drawn = np.random.default_rng(1).permutation(drawn[ids[drawn] >= 0] if len(ids) else drawn)
    if len(drawn) < 2:  # nearly all were removed
        return None
    sample = words_at(blocks, drawn)
    pivots = _choose_pivots(sample, sample[:count].copy(), words)
    if not _pays(sample, pivots, words):
        return None
    labels, radii = assign(blocks, size, pivots, words)
    places = np.zeros((len(pivots), 64 * len(words) + 1), np.int64)
    for at in range(0, size, _COUNTED):
        part = slice(at, min(at + _COUNTED, size))
        rings = labels[part].astype(np.int64) * places.shape[1] + radii[part]
        rings = rings[ids[part] >= 0] if len(ids) else rings
        places += np.bincount(rings, minlength=places.size).reshape(places.shape)
    starts = np.zeros(len(pivots) + 1, np.int64)
    np.cumsum(-(-places.sum(axis=1) // GROUP), out=starts[1:])
    places[:] = np.cumsum(places, axis=1) - places + GROUP * starts[:-1, None]
    used = int(starts[-1]) * GROUP
    new_blocks = np.empty((-(-with_room(used) // BLOCK), *blocks.shape[1:]), np.uint64)
    new_ids = np.empty(len(new_blocks) * BLOCK, np.int32)
    new_ids[:used] = -1
    nearest = np.full(int(starts[-1]), 64 * len(words), np.int64)
    farthest = np.zeros(int(starts[-1]), np.int64)
    place_codes(blocks, ids, labels, radii, places, new_blocks, new_ids, nearest, farthest)
    columns = to_blocks(pivots)[0]
    return Rings(new_blocks, new_ids, columns, starts, nearest, farthest, n, n, used)


def _choose_pivots(
    sample: NDArray[np.uint64], pivots: NDArray[np.uint64], words: tuple[int, ...]
) -> NDArray[np.uint64]:
    """k-majority: assign the sample, set each pivot to the majority of each bit, repeat."""
    bits = np.unpackbits(sample.view(np.uint8), axis=1, bitorder="little")
    for _ in range(_ROUNDS):
        labels, _ = assign(to_blocks(sample), len(sample), pivots, words)
        order = np.argsort(labels, kind="stable")
        used, begin = np.unique(labels[order], return_index=True)
        ones = np.add.reduceat(bits[order], begin, axis=0, dtype=np.int32)
        sizes = np.diff(np.append(begin, len(sample)))
        majority = np.packbits(2 * ones > sizes[:, None], axis=1, bitorder="little")
        pivots[used] = majority.view(np.uint64)
    return np.unique(pivots, axis=0)


def _pays(sample: NDArray[np.uint64], pivots: NDArray[np.uint64], words: tuple[int, ...]) -> bool:
    """Whether the sample's own nearest neighbours would be found for less than a scan costs."""
    labels, radii = assign(to_blocks(sample), len(sample), pivots, words)
    queries = sample[:_SPREAD_QUERIES]
    found = np.bitwise_count(queries[:, None] ^ sample[None]).sum(axis=2, dtype=np.int64)
    reach = np.partition(found, 1, axis=1)[:, 1]
    away = np.bitwise_count(queries[:, None] ^ pivots[None]).sum(axis=2, dtype=np.int64)
    needed = np.abs(away[:, labels] - radii[None].astype(np.int64)) <= reach[:, None]
    order = np.argsort(labels, kind="stable")
    _, begin = np.unique(labels[order], return_index=True)
    clusters = np.logical_or.reduceat(needed[:, order], begin, axis=1).mean()
    codes = needed.mean()
    return bool(codes + _A_CLUSTER * (clusters - codes) < _WORTH)


def assign(
    blocks: NDArray[np.uint64], n: int, pivots: NDArray[np.uint64], words: tuple[int, ...]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The nearest pivot of the code at each of n positions, and its distance."""
    labels, radii = np.empty(n, np.uint16), np.empty(n, np.uint16)
    rest = n, pivots, words, labels, radii
    parts = split(-(-n // BLOCK), thread_count())
    run_all([partial(assign_blocks, blocks, first, last, *rest) for first, last in parts])
    return labels, radii


def _pivot_count(n: int) -> int:
    return min(max(n // _CODES_PER_PIVOT, 1), _MAX_PIVOTS)


class RingSearch(NamedTuple):
    """A search of clustered codes for some queries; parameters as in ``Scan``."""

    rings: Rings
    words: tuple[int, ...]
    queries: NDArray[np.uint64]
    allowed: NDArray[np.bool_]

    def nearest(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """The k nearest of each query, (q, k); at least k codes must be allowed."""
        queries, rings, words = self.queries, self.rings, self.words
        if len(queries) == 1 and k <= _FEW:
            one: tuple[NDArray[np.uint16], Ids]
            one = nearest_of_one(rings, queries, words, self.allowed, k)
            return one
        keys = np.empty((len(queries), k), np.uint64)
        keys[:, 0] = FAR
        distances = np.empty(keys.shape, np.uint16)
        ids = np.empty(keys.shape, np.int64)
        stored = CodeBlocks(rings.blocks, np.zeros(0, np.uint8), rings.size, 8 * len(words))
        limits = reach(stored, queries, self.allowed, k)
        together = max(1, min(_TOGETHER, _KEYS_TOGETHER // k))

        def answer(order: NDArray[np.int64]) -> None:
            work = np.empty((min(len(order), together), 4 * k + GROUP), np.uint64)
            rest = words, self.allowed, k, limits, work, keys
            for at in range(0, len(order), together):
                some = order[at : at + together]
                if nearest_in_rings(rings, queries, some, *rest):
                    missed = some[keys[some, 0] == FAR]
                    limits[missed] = FAR
                    nearest_in_rings(rings, queries, missed, *rest)

        def sort(first: int, last: int) -> None:
            part = keys[first:last]
            part.sort(axis=1)
            distances[first:last] = part >> _SHIFT
            ids[first:last] = part & _ID

        self._over_threads(answer)
        parts = split(len(keys), thread_count() if keys.size > _ONE_THREAD else 1)
        run_all([partial(sort, *part) for part in parts])
        return distances, ids

    def within(self, radius: int) -> tuple[NDArray[np.uint16], Ids, NDArray[np.int64]]:
        """Codes within ``radius`` bits: distances, ids, and where each query's results begin."""
        counts = np.zeros(len(self.queries), np.int64)
        limit = np.uint64(min(radius, 64 * len(self.words)) + 1)
        found: dict[int, NDArray[np.uint64]] = {}

        def answer(order: NDArray[np.int64]) -> None:
            keys = within_rings(
                self.rings, self.queries, order, self.words, self.allowed, limit, counts
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
        """Answer queries on threads; those near the same pivot follow each other, for the cache."""
        order = np.arange(len(self.queries))
        if len(order) == 1:
            return answer(order)
        if len(order) >= _SORTED_FROM and len(self.rings.starts) > 1:
            pivots = np.ascontiguousarray(self.rings.pivots[:, : len(self.rings.starts) - 1].T)
            labels, _ = assign(to_blocks(self.queries), len(order), pivots, self.words)
            order = np.argsort(labels, kind="stable")
        run_all([partial(answer, order[a:b]) for a, b in split(len(order), thread_count())])


@njit(nogil=True, cache=True)
def assign_blocks(
    blocks: Any, first: int, last: int, n: int, pivots: Any, words: Any, labels: Any, radii: Any
) -> None:
    """Find the nearest pivot of each code of blocks ``first`` to ``last``, and its distance.

    Parameters
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        Codes, words as columns.
    first, last, n : int
        Range of blocks; number of all codes.
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
        best[:] = FAR
        for p in range(len(pivots)):
            pivot = pivots[p]
            for j in range(inside):
                found = (code_distance(block, j, pivot, words) << np.uint64(16)) | np.uint64(p)
                best[j] = min(best[j], found)
        for j in range(inside):
            labels[b * BLOCK + j] = best[j] & np.uint64(0xFFFF)
            radii[b * BLOCK + j] = best[j] >> np.uint64(16)


@njit(nogil=True, cache=True)
def place_codes(
    blocks: Any, ids: Any, labels: Any, radii: Any, places: Any, target: Any, new_ids: Any,
    nearest: Any, farthest: Any,
) -> None:  # fmt: skip
    """Copy codes to their rings: a counting sort by pivot, distance and position.

    Parameters
    ----------
    blocks, target : ndarrays of shape (m, w, BLOCK) and (t, w, BLOCK), uint64
        From where, to where.
    ids : ndarray of shape (>= n,) or (0,), int32
        Ids of the codes, -1 where there is none; empty: there is one at each position.
    labels, radii : ndarrays of shape (n,), uint16
        The nearest pivot of the code at each position, and its distance.
    places : ndarray of shape (p, 64 * w + 1), int64
        Where the next code of each pivot and distance goes; advanced.
    new_ids : ndarray of shape (t * BLOCK,), int32
        Receives the id at each place.
    nearest, farthest : ndarrays of shape (groups,), int64
        Receive the smallest and largest distance in each group.
    """
    for i in range(len(labels)):
        if len(ids) and ids[i] < 0:
            continue
        radius = np.int64(radii[i])
        p = places[labels[i], radius]
        places[labels[i], radius] = p + 1
        for word in range(blocks.shape[1]):
            target[p // BLOCK, word, p % BLOCK] = blocks[i // BLOCK, word, i % BLOCK]
        new_ids[p] = ids[i] if len(ids) else i
        nearest[p // GROUP] = min(nearest[p // GROUP], radius)
        farthest[p // GROUP] = max(farthest[p // GROUP], radius)


@njit(nogil=True, cache=True)
def _keep_smallest(keys: Any, count: int, k: int, room: int, histogram: Any) -> Any:
    """Move the k smallest of ``count`` keys to the front, in no order; return how many stay.

    Those as far as the last of them stay too while they are at most ``room`` in all: to tell
    which of them have the smallest ids takes longer. Also returned: a bound for later keys.
    """
    histogram[:] = 0
    for c in range(count):
        histogram[keys[c] >> _SHIFT] += 1
    nearer, kth = 0, 0
    while nearer + histogram[kth] < k:
        nearer += histogram[kth]
        kth += 1
    bound = np.uint64(kth + 1) << _SHIFT
    if nearer + histogram[kth] > room:
        ties = np.empty(histogram[kth], np.uint64)
        tied = 0
        for c in range(count):
            if np.int64(keys[c] >> _SHIFT) == kth:
                ties[tied] = keys[c]
                tied += 1
        bound = np.partition(ties, k - nearer - 1)[k - nearer - 1] + ONE
    kept = 0
    for c in range(count):
        key = keys[c]
        if key < bound:
            keys[kept] = key
            kept += 1
    return kept, bound


@njit(nogil=True, cache=True)
def _scan_groups(
    rings: Any, first: int, last: int, cluster: int, asked: Any, words: Any, allowed: Any, k: int,
    of_queries: Any, begin: int, end: int, histogram: Any,
) -> None:  # fmt: skip
    """Add codes of groups ``first`` to ``last`` to the candidates of queries ``begin`` to ``end``.

    They are the groups of one cluster, or of none (-1). Of a query, codes as far as ``below`` and
    keys as large as ``bounds`` are ignored; when its keys are full, the k smallest stay.
    """
    away, least, below, bounds, keys, counts = of_queries
    for c in range(begin, end):
        limit, g, distance = below[c], first, np.int64(0)
        if cluster >= 0:
            if least[cluster, c] >= np.int64(limit):
                continue
            distance = np.int64(away[cluster, c])
            after = last  # the groups are in the order of their distance to the pivot
            while g < after:
                middle = (g + after) // 2
                if distance - rings.farthest[middle] < np.int64(limit):
                    after = middle
                else:
                    g = middle + 1
        bound, count, query = bounds[c], counts[c], asked[c]
        block = rings.blocks[min(g, last - 1) // _GROUPS]
        while g < last:
            if cluster >= 0 and rings.nearest[g] - distance >= np.int64(limit):
                break
            start = (g % _GROUPS) * GROUP
            if start == 0:
                block = rings.blocks[g // _GROUPS]
            at = g * GROUP
            g += 1
            if not any_below(block, start, query, limit, words):
                continue
            mask = mask_below(block, start, query, limit, words)
            while mask:
                j = np.int64(trailing_zeros(mask))
                mask &= mask - ONE
                if at + j >= rings.size:
                    break
                code = rings.ids[at + j]
                if code < 0 or code >= rings.n or (len(allowed) and not allowed[code]):
                    continue
                found = code_distance(block, start + j, query, words)
                key = (found << _SHIFT) | np.uint64(code)
                if key >= bound:
                    continue
                keys[c, count] = key
                count += 1
                if count == keys.shape[1]:
                    count, bound = _keep_smallest(keys[c], count, k, count // 2, histogram)
                    limit = min(limit, ((bound - ONE) >> _SHIFT) + ONE)
        below[c], bounds[c], counts[c] = limit, bound, count


@njit(nogil=True, cache=True)
def _pivot_distances(
    rings: Any, asked: Any, words: Any, away: Any, least: Any, nearest: Any
) -> None:
    """Set queries' distances to pivots, the least that their codes have, and the nearest pivots.

    ``away`` and ``least`` have a row per pivot and a column per query.
    """
    pivots = len(rings.starts) - 1
    low, high = np.full(BLOCK, _NEVER, np.int16), np.full(BLOCK, _NEVER, np.int16)
    for p in range(pivots):
        a, b = rings.starts[p], rings.starts[p + 1]
        if a < b:
            low[p], high[p] = rings.nearest[a], rings.farthest[b - 1]
    found = np.empty(BLOCK, np.int16)
    for c in range(len(asked)):
        query = asked[c]
        for p in range(pivots):  # the compiler compares several pivots at once
            found[p] = np.int16(code_distance(rings.pivots, p, query, words))
        nearest[c] = np.argmin(found[:pivots])
        for p in range(pivots):
            away[p, c] = found[p]
            least[p, c] = max(np.int16(0), low[p] - found[p], found[p] - high[p])


@njit(nogil=True, cache=True)
def _is_needed(least: Any, p: int, below: Any) -> Any:
    """Whether the cluster of a pivot may hold a result of some query."""
    needed = False
    for c in range(len(below)):
        needed |= least[p, c] < np.int64(below[c])
    return needed


@njit(nogil=True, cache=True)
def _needed(away: Any, least: Any, below: Any, pivots: int, histogram: Any) -> Any:
    """Pivots whose clusters are needed, by distance to the first query: a counting sort."""
    needed, order = np.empty(pivots, np.int64), np.empty(pivots, np.int64)
    histogram[:] = 0
    count = 0
    for p in range(pivots):
        if _is_needed(least, p, below):
            histogram[away[p, 0] + 1] += 1
            needed[count] = p
            count += 1
    for d in range(1, len(histogram)):
        histogram[d] += histogram[d - 1]
    for p in needed[:count]:
        order[histogram[away[p, 0]]] = p
        histogram[away[p, 0]] += 1
    return order[:count]


@njit(nogil=True, cache=True)
def nearest_in_rings(
    rings: Any, queries: Any, order: Any, words: Any, allowed: Any, k: int, limits: Any,
    keys: Any, out: Any,
) -> Any:  # fmt: skip
    """The k nearest codes of a few queries, as keys in no order.

    A cluster is compared with all queries that need it, while it is in the cache. The codes in no
    cluster come first, and the nearest cluster of each query: they lower the bounds.

    Parameters
    ----------
    rings : Rings
        The database.
    queries : ndarray of shape (q, w), uint64
        Codes to search for.
    order : ndarray of shape (m,), int64
        The queries to answer; faster if they are similar.
    words : tuple of length w
        Gives w to the compiler.
    allowed : ndarray of shape (n,) or (0,), bool
        Codes that may be found; at least k of them, or empty: all.
    k : int
        Results per query, at least 1.
    limits : ndarray of shape (q,), uint64
        Distances that no result reaches.
    keys : ndarray of shape (m, c), uint64
        To work in; c is more than 2 * k.
    out : ndarray of shape (q, k), uint64
        Results: keys, a distance 32 bits up and an id. Where fewer than k are below a query's
        limit, its first one is left as it is.

    Returns
    -------
    int
        Queries that were left so.
    """
    m, pivots, asked = len(order), len(rings.starts) - 1, queries[order]
    histogram = np.empty(64 * len(words) + 2, np.int64)
    away, least = np.empty((BLOCK, m), np.int16), np.empty((BLOCK, m), np.int16)
    below = np.minimum(limits[order], np.uint64(64 * len(words) + 1))
    counts = np.zeros(m, np.int64)
    of_queries = away, least, below, np.full(m, FAR), keys, counts
    nearest = np.empty(m, np.int64)
    _pivot_distances(rings, asked, words, away, least, nearest)
    last = (rings.size + GROUP - 1) // GROUP
    for g in range(rings.starts[-1], last, _GROUPS):
        _scan_groups(
            rings, g, min(g + _GROUPS, last), -1, asked, words, allowed, k, of_queries, 0, m,
            histogram,
        )  # fmt: skip
    for c in range(m):
        p = nearest[c]
        _scan_groups(
            rings, rings.starts[p], rings.starts[p + 1], p, asked, words, allowed, k, of_queries,
            c, c + 1, histogram,
        )  # fmt: skip
        least[p, c] = _NEVER
    for p in _needed(away, least, below, pivots, histogram):
        if _is_needed(least, p, below):  # still: bounds fall on the way
            _scan_groups(
                rings, rings.starts[p], rings.starts[p + 1], p, asked, words, allowed, k,
                of_queries, 0, m, histogram,
            )  # fmt: skip
    for c in range(m):
        if counts[c] >= k:
            if counts[c] > k:
                _keep_smallest(keys[c], counts[c], k, k, histogram)
            out[order[c]] = keys[c, :k]
    return np.sum(counts < k)


@njit(nogil=True, cache=True)
def nearest_of_one(rings: Any, query: Any, words: Any, allowed: Any, k: int) -> Any:
    """The k nearest codes of one query, in order: all in one call, as calls take as long as work.

    Parameters
    ----------
    rings, words, allowed, k
        As in ``nearest_in_rings``.
    query : ndarray of shape (1, w), uint64
        The code to search for.

    Returns
    -------
    distances : ndarray of shape (1, k), uint16
    ids : ndarray of shape (1, k), int64
    """
    keys, distances = np.empty((1, k), np.uint64), np.empty((1, k), np.uint16)
    ids, work = np.empty((1, k), np.int64), np.empty((1, 4 * k + GROUP), np.uint64)
    nearest_in_rings(
        rings, query, np.zeros(1, np.int64), words, allowed, k, np.full(1, FAR), work, keys
    )
    for i, key in enumerate(np.sort(keys[0])):
        distances[0, i], ids[0, i] = key >> _SHIFT, key & _ID
    return distances, ids


@njit(nogil=True, cache=True)
def within_rings(
    rings: Any, queries: Any, order: Any, words: Any, allowed: Any, limit: np.uint64, counts: Any
) -> Any:
    """All codes nearer than ``limit`` of some queries.

    Parameters
    ----------
    rings, queries, order, words, allowed
        As in ``nearest_in_rings``.
    limit : int
        One more than the largest distance of a result.
    counts : ndarray of shape (q,), int64
        Receives the number of results of each query.

    Returns
    -------
    ndarray of shape (m,), uint64
        Keys, one query of ``order`` after the other, each query's in no order.
    """
    histogram = np.zeros(0, np.int64)
    away, least = np.empty((BLOCK, 1), np.int16), np.empty((BLOCK, 1), np.int16)
    below, bounds = np.full(1, limit), np.full(1, FAR)
    keys, total = np.empty((1, 1024), np.uint64), np.zeros(1, np.int64)
    nearest = np.empty(1, np.int64)
    last, asked = (rings.size + GROUP - 1) // GROUP, queries[order]
    for at in range(len(order)):
        before, one = total[0], asked[at : at + 1]
        _pivot_distances(rings, one, words, away, least, nearest)
        for g in range(rings.starts[-1], last, _GROUPS):
            keys = _with_room(keys, total[0], _GROUPS)
            _scan_groups(
                rings, g, min(g + _GROUPS, last), -1, one, words, allowed, 0,
                (away, least, below, bounds, keys, total), 0, 1, histogram,
            )  # fmt: skip
        for p in range(len(rings.starts) - 1):
            if least[p, 0] < np.int64(limit):
                a, b = rings.starts[p], rings.starts[p + 1]
                keys = _with_room(keys, total[0], b - a)
                _scan_groups(
                    rings, a, b, p, one, words, allowed, 0,
                    (away, least, below, bounds, keys, total), 0, 1, histogram,
                )  # fmt: skip
        counts[order[at]] = total[0] - before
    return keys[0, : total[0]]


@njit(nogil=True, cache=True)
def _with_room(keys: Any, count: int, groups: int) -> Any:
    """The first ``count`` keys, in an array that all codes of so many groups do not fill."""
    if count + groups * GROUP < keys.shape[1]:
        return keys
    longer = np.empty((1, 2 * (count + groups * GROUP)), np.uint64)
    longer[:, :count] = keys[:, :count]
    return longer
