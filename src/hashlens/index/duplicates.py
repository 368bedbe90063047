"""Near-duplicates: groups of images whose codes lie within a few bits of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.pairs import hamming_pairs
from hashlens.index.ranking import ArraySearcher
from hashlens.types import Ids


class DuplicateGroups(NamedTuple):
    """Groups of near-duplicates.

    Attributes
    ----------
    groups : list of list of int
        Ids, ascending in each group; groups in the order of their first id. Two images are in
        one group if a chain of pairs within the radius joins them.
    pairs : int
        Pairs within the radius.
    """

    groups: list[list[int]]
    pairs: int


def find_duplicates(
    searcher: ArraySearcher,
    radius: int,
    allowed: NDArray[np.bool_] | None,
    progress: Callable[[int], None] | None,
) -> DuplicateGroups:
    """See ``HashIndex.duplicates``."""

    def pairs() -> Iterator[tuple[Ids, Ids]]:
        for left, right, _ in hamming_pairs(searcher.codes, radius, allowed=allowed):
            if progress is not None:
                progress(len(left))
            yield left, right

    groups, total = group_pairs(len(searcher), pairs())
    return DuplicateGroups([searcher.to_ids(rows).tolist() for rows in groups], total)


def group_pairs(count: int, pairs: Iterable[tuple[Ids, Ids]]) -> tuple[list[Ids], int]:
    """Join pairs of rows to groups; one batch of pairs is held at a time."""
    parent = np.arange(count)
    total = 0
    for left, right in pairs:
        total += len(left)
        _join(parent, left, right)
    parent = _roots(parent, np.arange(count))
    order = np.argsort(parent, kind="stable")
    starts = np.flatnonzero(np.diff(parent[order], prepend=-1))
    groups = np.split(order, starts[1:])
    return [group for group in groups if len(group) > 1], total


def _join(parent: Ids, left: Ids, right: Ids) -> None:
    """Union-find over whole arrays: hang the larger root of each pair under the smaller."""
    while len(left):
        left, right = _roots(parent, left), _roots(parent, right)
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))


def _roots(parent: Ids, rows: Ids) -> NDArray[np.int64]:
    """The root of each row; rows come to point at it."""
    roots = parent[rows]
    while True:
        above = parent[roots]
        if np.array_equal(above, roots):
            break
        roots = above
    parent[rows] = roots
    return roots
