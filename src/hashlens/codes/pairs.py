"""All pairs of codes within some bits of each other: an exact self-join, streamed.

Two codes within R bits agree in at least one of R + 1 parts of the code (the pigeonhole principle,
as in multi-index hashing: Norouzi, Punjani, Fleet, CVPR 2012), so codes are sorted by each part in
turn and only those with an equal part are compared. Where that would compare more than it saves,
as with a large radius, all pairs are compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hashlens.codes.database import CodeDatabase, check_allowed
from hashlens.codes.packing import check_codes, to_words
from hashlens.codes.threads import submit, thread_count
from hashlens.codes.vector import GROUP, ONE, any_below, code_distance, mask_below, trailing_zeros
from hashlens.errors import InvalidInputError
from hashlens.types import Ids

BATCH = 1 << 20
"""Largest number of pairs in a batch."""
_COMPARISONS = 1 << 22
_TILE_ROWS, _TILE_COLUMNS = 256, 2048
_SORTED_COST = 8  # of a comparison within short runs; one of the exhaustive join costs 1
_SHORT = 16

PairBatch: TypeAlias = tuple[Ids, Ids, NDArray[np.uint16]]


def hamming_pairs(database: Any, radius: int, *, allowed: Any = None) -> Iterator[PairBatch]:
    """All pairs of different rows within ``radius`` bits of each other, each pair once.

    Parameters
    ----------
    database : CodeDatabase, or array_like of shape (n, bytes), uint8
        Packed codes.
    radius : int
        Largest distance, in bits.
    allowed : array_like of shape (n,), bool, optional
        Only pairs of rows where this is true.

    Yields
    ------
    left, right : ndarrays of shape (m,), int64
        Rows of ``database``, left < right; the pairs are in no particular order.
    distances : ndarray of shape (m,), uint16
        In bits.

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or radius do not fit; raised by the call, not by the first batch.
    """
    if radius < 0:
        raise InvalidInputError(f"radius: expected 0 or more, got {radius}")
    codes = database.packed() if isinstance(database, CodeDatabase) else database
    codes = check_codes(codes, "database")
    rows = np.arange(len(codes))
    if allowed is not None:
        rows = np.flatnonzero(check_allowed(allowed, len(codes)))
        codes = codes[rows]
    return _all_pairs(to_words(codes), rows, radius, 8 * codes.shape[1])


def _all_pairs(words: NDArray[np.uint64], rows: Ids, radius: int, bits: int) -> Iterator[PairBatch]:
    order, starts = _equal_runs(words)
    codes = _Distinct(np.ascontiguousarray(words[order[starts[:-1]]]), rows[order], starts)
    copied = np.flatnonzero(np.diff(starts) > 1)
    yield from _owners(codes, copied, copied, np.zeros(len(copied), np.uint16))
    if radius:
        for left, right, distances in _distinct_pairs(codes.words, radius, bits):
            yield from _owners(codes, left, right, distances)


class _Distinct(NamedTuple):
    """Codes without repetitions, and who has them."""

    words: NDArray[np.uint64]  # (m, w): distinct codes, sorted
    ids: Ids  # (n,): ids by code; ascending among equal codes
    starts: NDArray[np.int64]  # (m + 1,): code u belongs to ``ids[starts[u]:starts[u + 1]]``


def _equal_runs(words: NDArray[np.uint64]) -> tuple[Ids, NDArray[np.int64]]:
    """The stable order that sorts codes (n, w), and where in it each run of equal ones starts."""
    order = np.lexsort(words.T)
    ordered = words[order]
    new = np.ones(len(words), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.append(np.flatnonzero(new), len(words))


def _owners(
    codes: _Distinct,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    distances: NDArray[np.uint16],
) -> Iterator[PairBatch]:
    """Pairs of ids from pairs of distinct codes, a batch at a time."""
    ids, starts = codes.ids, codes.starts
    lefts, rights = np.diff(starts)[left], np.diff(starts)[right]
    ends = np.cumsum(lefts * rights)
    at = 0
    while at < len(left):
        done = ends[at - 1] if at else 0
        stop = int(np.searchsorted(ends, done + BATCH, side="right"))
        if stop == at:
            yield from _product(codes, int(left[at]), int(right[at]), distances[at])
            at += 1
            continue
        sizes = (lefts * rights)[at:stop]
        pair = np.repeat(np.arange(at, stop), sizes)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        a = ids[starts[left[pair]] + within // rights[pair]]
        b = ids[starts[right[pair]] + within % rights[pair]]
        yield from _once(a, b, distances[pair], left[pair] == right[pair])
        at = stop


def _product(codes: _Distinct, u: int, v: int, distance: Any) -> Iterator[PairBatch]:
    """Pairs of the owners of two codes that have too many for one batch."""
    side = int(BATCH**0.5)
    first = codes.ids[codes.starts[u] : codes.starts[u + 1]]
    second = codes.ids[codes.starts[v] : codes.starts[v + 1]]
    for i in range(0, len(first), side):
        for j in range(i if u == v else 0, len(second), side):
            a, b = first[i : i + side], second[j : j + side]
            pairs = np.repeat(a, len(b)), np.tile(b, len(a))
            distances = np.full(len(pairs[0]), distance, np.uint16)
            yield from _once(*pairs, distances, np.full(len(distances), u == v))


def _once(
    a: Ids, b: Ids, distances: NDArray[np.uint16], same: NDArray[np.bool_]
) -> Iterator[PairBatch]:
    """The smaller id left; of a code paired with itself each pair once."""
    keep = ~same | (a < b)
    if not keep.all():
        a, b, distances = a[keep], b[keep], distances[keep]
    if len(a):
        yield np.minimum(a, b), np.maximum(a, b), distances


def _distinct_pairs(words: NDArray[np.uint64], radius: int, bits: int) -> Iterator[PairBatch]:
    """Pairs of distinct codes within ``radius``, as positions in ``words``."""
    n, parts = len(words), _part_masks(radius, bits, words.shape[1])
    sorted_parts = []
    cost, everything = 0, n * (n - 1) // 2
    for mask in parts:
        order, starts = _equal_runs(words & mask)
        sizes = np.diff(starts)
        cost += int((sizes * (sizes - 1) // 2).sum())
        if _SORTED_COST * cost >= everything:
            tiles = _tiles(np.array([0]), np.array([n]))
            yield from _join(words, np.arange(n), tiles, parts[:0], radius)
            return
        long = sizes > 1
        sorted_parts.append((order, starts[:-1][long], starts[1:][long]))
    for p, (order, first, last) in enumerate(sorted_parts):
        yield from _join(words, order, _tiles(first, last), parts[:p], radius)


def _part_masks(radius: int, bits: int, width: int) -> NDArray[np.uint64]:
    """Masks (radius + 1, w) of the parts of a code, nearly equally long; one of 0 if too short."""
    if radius >= bits:
        return np.zeros((1, width), np.uint64)
    part = np.arange(64 * width) * (radius + 1) // bits
    chosen = part[None, :] == np.arange(radius + 1)[:, None]
    packed = np.packbits(chosen, axis=1, bitorder="little")
    masks: NDArray[np.uint64] = np.ascontiguousarray(packed).view(np.uint64)
    return masks


def _tiles(first: NDArray[np.int64], last: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The comparisons within runs of codes, as tiles for ``pairs_in_tiles``; a batch at a time."""
    sizes = last - first
    short = sizes <= _TILE_ROWS
    a, b = first[short], last[short]
    work = np.cumsum((b - a) ** 2)
    cuts = np.searchsorted(work, np.arange(_COMPARISONS, work[-1:].sum(), _COMPARISONS))
    yield from np.split(np.stack([a, b, a, b], axis=1), cuts)
    for run, end in zip(first[~short].tolist(), last[~short].tolist(), strict=True):
        for row in range(run, end, _TILE_ROWS):
            columns = np.arange(row, end, _TILE_COLUMNS)
            tiles = np.empty((len(columns), 4), np.int64)
            tiles[:, 0], tiles[:, 1] = row, min(row + _TILE_ROWS, end)
            tiles[:, 2], tiles[:, 3] = columns, np.minimum(columns + _TILE_COLUMNS, end)
            step = _COMPARISONS // (_TILE_ROWS * _TILE_COLUMNS)
            yield from np.split(tiles, range(step, len(tiles), step))


def _join(
    words: NDArray[np.uint64],
    order: NDArray[np.int64],
    tiles: Iterable[NDArray[np.int64]],
    earlier: NDArray[np.uint64],
    radius: int,
) -> Iterator[PairBatch]:
    """Compare the codes of tiles on several threads; pairs with an equal earlier part are known."""
    columns = np.zeros((words.shape[1], len(words) + GROUP), np.uint64)
    columns[:, : len(words)] = words[order].T
    width = (0,) * words.shape[1]
    limit = np.uint64(min(radius, 64 * words.shape[1]) + 1)

    def compare(part: NDArray[np.int64]) -> PairBatch:
        most = int(((part[:, 1] - part[:, 0]) * (part[:, 3] - part[:, 2])).sum())
        left, right = np.empty(most, np.int64), np.empty(most, np.int64)
        distances = np.empty(most, np.uint16)
        found = pairs_in_tiles(columns, part, earlier, width, limit, left, right, distances)
        return order[left[:found]], order[right[:found]], distances[:found].copy()

    waiting: deque[Future[PairBatch]] = deque()
    for part in tiles:
        waiting.append(submit(compare, part))
        if len(waiting) > 2 * thread_count():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def group_pairs(count: int, pairs: Iterable[tuple[Ids, Ids]]) -> tuple[list[Ids], int]:
    """Join pairs of rows to groups of two rows or more; also the number of pairs.

    Only one batch of pairs is held at a time.
    """
    parent = np.arange(count)
    total = 0
    for left, right in pairs:
        total += len(left)
        _unite(parent, left, right)
    parent = _roots(parent, np.arange(count))
    order = np.argsort(parent, kind="stable")
    starts = np.flatnonzero(np.diff(parent[order], prepend=-1))
    groups = np.split(order, starts[1:])
    return [group for group in groups if len(group) > 1], total


def _unite(parent: Ids, left: Ids, right: Ids) -> None:
    """Union-find over whole arrays: hang the larger root of each pair under the smaller."""
    while len(left):
        left, right = _roots(parent, left), _roots(parent, right)
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))


def _roots(parent: Ids, rows: Ids) -> NDArray[np.int64]:
    """The root of each row, which becomes its parent."""
    roots = parent[rows]
    while not np.array_equal(above := parent[roots], roots):
        roots = above
    parent[rows] = roots
    return roots


@njit(nogil=True, cache=True)
def pairs_in_tiles(
    columns: Any, tiles: Any, earlier: Any, words: Any, limit: np.uint64,
    left: Any, right: Any, distances: Any,
) -> int:  # fmt: skip
    """Find the pairs nearer than ``limit`` in rectangles of comparisons; return how many."""
    query = np.empty(len(words), np.uint64)
    count = 0
    for t in range(len(tiles)):
        last = tiles[t, 3]
        for i in range(tiles[t, 0], tiles[t, 1]):
            first = max(tiles[t, 2], i + 1)
            for word in range(len(words)):
                query[word] = columns[word, i]
            if last - first < _SHORT:
                for j in range(first, last):
                    distance = code_distance(columns, j, query, words)
                    if distance < limit and not _known(columns, i, j, earlier):
                        left[count], right[count], distances[count] = i, j, distance
                        count += 1
                continue
            for start in range(first, last, GROUP):  # a group may reach past the last column
                if not any_below(columns, start, query, limit, words):
                    continue
                mask = mask_below(columns, start, query, limit, words)
                while mask:
                    at = start + np.int64(trailing_zeros(mask))
                    mask &= mask - ONE
                    if at < last and not _known(columns, i, at, earlier):
                        left[count], right[count] = i, at
                        distances[count] = code_distance(columns, at, query, words)
                        count += 1
    return count


@njit(nogil=True, cache=True)
def _known(columns: Any, i: int, j: int, earlier: Any) -> bool:
    """Whether two codes agree in an earlier part."""
    for p in range(len(earlier)):
        agree = True
        for word in range(columns.shape[0]):
            agree &= (columns[word, i] ^ columns[word, j]) & earlier[p, word] == 0
        if agree:
            return True
    return False
