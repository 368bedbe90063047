"""Exact search that skips most codes: rings around pivots, and the triangle inequality.

Each code belongs to the nearest of some pivots and lies in that pivot's *cluster*, sorted by its
distance to the pivot, so that GROUP neighbouring codes form a thin ring. A code of a ring between
distances ``a`` and ``b`` of a pivot that is ``d`` bits away from the query is at least
``max(d - b, a - d)`` bits away from the query; rings that cannot hold a result are not looked at.
The idea is iDistance (Jagadish, Ooi, Tan, Yu, Zhang, ACM TODS 30(2), 2005) in Hamming space, with
pivots by k-majority. It pays where codes are clustered, as codes learned from class labels are.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes import kernels, ring_kernels
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.codes.vector import GROUP

MIN_CODES = 1 << 16
"""Fewer codes are scanned as fast as pivots could be compared."""
_MAX_PIVOTS = kernels.BLOCK
_CODES_A_PIVOT = 1024
_SAMPLE_A_PIVOT = 32
_ROUNDS = 3
_SPREAD_QUERIES = 64
_SPREAD_K = 10


class Rings(NamedTuple):
    """Codes in clusters, and codes added since, as the kernels read them.

    Attributes
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        Codes, words as columns; each cluster starts at a multiple of GROUP.
    ids : ndarray of shape (>= m * BLOCK,), int32
        The id of the code at each position, -1 where there is none.
    pivots : ndarray of shape (w, BLOCK), uint64
        The pivots, words as columns.
    starts : ndarray of shape (p + 1,), int64
        Cluster c has the groups ``starts[c]:starts[c + 1]``.
    nearest, farthest : ndarrays of shape (starts[-1],), int64
        Smallest and largest distance of each group's codes to their pivot.
    clustered : int
        Codes in clusters.
    size : int
        Positions in use; those past ``starts[-1] * GROUP`` were added later and lie in no cluster.
    """

    blocks: NDArray[np.uint64]
    ids: NDArray[np.int32]
    pivots: NDArray[np.uint64]
    starts: NDArray[np.int64]
    nearest: NDArray[np.int64]
    farthest: NDArray[np.int64]
    clustered: int
    size: int


def worth_queries(n: int) -> int:
    """Queries whose scans take about as long as clustering ``n`` codes."""
    return 2 * _pivot_count(n)


def build(
    blocks: NDArray[np.uint64], ids: NDArray[np.int32], words: tuple[int, ...], seed: int = 0
) -> Rings | None:
    """Cluster codes around pivots; None where the codes spread so evenly that it would not pay.

    Parameters
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        Codes, words as columns.
    ids : ndarray of shape (s,), int32
        The id of the code at each position; -1 where there is none.
    words : tuple of length w
        Gives w to the compiler.
    seed : int
        Of the sample that the pivots are made from.
    """
    positions = np.flatnonzero(ids >= 0)
    rng = np.random.default_rng(seed)
    count = _pivot_count(len(positions))
    drawn = rng.choice(len(positions), min(len(positions), count * _SAMPLE_A_PIVOT), replace=False)
    sample = _codes_at(blocks, positions[drawn])
    pivots = _choose_pivots(sample, sample[:count].copy(), words)
    if not _pays(sample, pivots, words):
        return None
    labels, radii = assign(blocks, len(ids), pivots, words)
    # one sortable number a code: cluster, distance to the pivot, position
    keys: NDArray[np.uint64] = labels[positions].astype(np.uint64) * np.uint64(1 << 48)
    keys += radii[positions].astype(np.uint64) * np.uint64(1 << 32)
    keys += positions.astype(np.uint64)
    keys.sort()
    return _lay_out(blocks, ids, keys, pivots)


def _lay_out(
    blocks: NDArray[np.uint64],
    ids: NDArray[np.int32],
    keys: NDArray[np.uint64],
    pivots: NDArray[np.uint64],
) -> Rings:
    """Copy codes to their places, each cluster from a multiple of GROUP on."""
    source = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    labels = (keys >> np.uint64(48)).astype(np.int64)
    radii = ((keys >> np.uint64(32)) & np.uint64(0xFFFF)).astype(np.int64)
    sizes = np.bincount(labels, minlength=len(pivots))
    starts = np.concatenate([[0], np.cumsum(-(-sizes // GROUP))]).astype(np.int64)
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(keys)) + (starts[:-1] * GROUP - first)[labels]
    size = int(starts[-1]) * GROUP
    new_ids = np.full(size, -1, np.int32)
    new_ids[place] = ids[source]
    new_blocks = np.empty((-(-size // kernels.BLOCK), *blocks.shape[1:]), np.uint64)
    run_all(
        [
            partial(ring_kernels.move_codes, blocks, source[a:b], new_blocks, place[a:b])
            for a, b in split(len(keys), thread_count())
        ]
    )
    groups = place // GROUP
    nearest = np.zeros(int(starts[-1]), np.int64)
    farthest = np.zeros(int(starts[-1]), np.int64)
    nearest[groups[::-1]] = radii[::-1]  # the first of a group is written last
    farthest[groups] = radii
    columns = as_blocks(pivots)[0]
    return Rings(new_blocks, new_ids, columns, starts, nearest, farthest, len(keys), size)


def _choose_pivots(
    sample: NDArray[np.uint64], pivots: NDArray[np.uint64], words: tuple[int, ...]
) -> NDArray[np.uint64]:
    """k-majority: assign the sample, set each pivot to the majority of each bit, repeat."""
    bits = np.unpackbits(sample.view(np.uint8), axis=1, bitorder="little")
    for _ in range(_ROUNDS):
        labels, _ = assign(as_blocks(sample), len(sample), pivots, words)
        order = np.argsort(labels, kind="stable")
        used, begin = np.unique(labels[order], return_index=True)
        ones = np.add.reduceat(bits[order], begin, axis=0, dtype=np.int32)
        sizes = np.diff(np.append(begin, len(sample)))
        majority = np.packbits(2 * ones > sizes[:, None], axis=1, bitorder="little")
        pivots[used] = majority.view(np.uint64)
    return np.unique(pivots, axis=0)


def _pays(sample: NDArray[np.uint64], pivots: NDArray[np.uint64], words: tuple[int, ...]) -> bool:
    """Whether the sample's own neighbours would be found among less than half of its rings."""
    labels, radii = assign(as_blocks(sample), len(sample), pivots, words)
    queries = sample[:_SPREAD_QUERIES]
    found = np.bitwise_count(queries[:, None] ^ sample[None]).sum(axis=2, dtype=np.int64)
    reach = np.partition(found, _SPREAD_K, axis=1)[:, _SPREAD_K]
    away = np.bitwise_count(queries[:, None] ^ pivots[None]).sum(axis=2, dtype=np.int64)
    bounds = np.abs(away[:, labels] - radii[None].astype(np.int64))
    return bool((bounds <= reach[:, None]).mean() < 0.5)


def assign(
    blocks: NDArray[np.uint64], n: int, pivots: NDArray[np.uint64], words: tuple[int, ...]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The nearest pivot of the code at each of n positions, and its distance."""
    labels, radii = np.empty(n, np.uint16), np.empty(n, np.uint16)
    run_all(
        [
            partial(ring_kernels.assign, blocks, first, last, n, pivots, words, labels, radii)
            for first, last in split(-(-n // kernels.BLOCK), thread_count())
        ]
    )
    return labels, radii


def _codes_at(blocks: NDArray[np.uint64], positions: NDArray[Any]) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = np.ascontiguousarray(
        blocks[positions // kernels.BLOCK, :, positions % kernels.BLOCK]
    )
    return found


def as_blocks(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Codes (n, w) as blocks, the last one filled up with zeros."""
    count = -(-len(words) // kernels.BLOCK)
    padded = np.zeros((count * kernels.BLOCK, words.shape[1]), np.uint64)
    padded[: len(words)] = words
    return np.ascontiguousarray(
        padded.reshape(count, kernels.BLOCK, words.shape[1]).transpose(0, 2, 1)
    )


def _pivot_count(n: int) -> int:
    return min(max(n // _CODES_A_PIVOT, 1), _MAX_PIVOTS)
