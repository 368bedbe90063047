"""The compiled kernel of the self-join (``pairs.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hashlens.codes.vector import GROUP, any_below, code_distance, mask_below, trailing_zeros

__all__ = ["GROUP", "pairs_in_tiles"]

_ONE = np.uint64(1)
_SHORT = 16


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


@njit(nogil=True, cache=True)
def pairs_in_tiles(
    columns: Any,
    tiles: Any,
    earlier: Any,
    words: Any,
    limit: np.uint64,
    left: Any,
    right: Any,
    distances: Any,
) -> int:
    """Find the pairs nearer than ``limit`` in rectangles of comparisons; return how many.

    Parameters
    ----------
    columns : ndarray of shape (w, m), uint64
        Codes, words as columns, with GROUP codes to spare at the end.
    tiles : ndarray of shape (t, 4), int64
        Rows from, to, columns from, to; only pairs with row < column are compared.
    earlier : ndarray of shape (p, w), uint64
        Masks of parts; pairs that agree in one of them are left out.
    words : tuple of length w
        Gives w to the compiler.
    limit : int
        One more than the largest distance of a pair.
    left, right, distances : ndarrays of shape (c,), int64, int64, uint16
        Results; as long as there are comparisons.
    """
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
                    mask &= mask - _ONE
                    if at < last and not _known(columns, i, at, earlier):
                        left[count], right[count] = i, at
                        distances[count] = code_distance(columns, at, query, words)
                        count += 1
    return count
