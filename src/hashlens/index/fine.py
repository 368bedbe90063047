"""Fine search: pools of codes in the order of the Euclidean distance between features."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.threads import run_all, split, thread_count
from hashlens.errors import InvalidInputError
from hashlens.index.euclidean import check_features, distances_to_rows, nearest_candidates
from hashlens.protocols import Features, Ids, SearchResult


class FineSearch:
    """Features that belong to n codes; a code is named by its slot, 0 to n - 1.

    Parameters
    ----------
    features : array_like of shape (m, d), float16 or float32
        Kept as it is, and read only where a search needs it.
    rows : ndarray of shape (n,), int64, or None
        Row of ``features`` that belongs to each slot, where they are stored in another order.
    slots : int
        n; without ``rows``, also m.

    Raises
    ------
    InvalidInputError
        If shapes or dtypes do not fit.
    """

    def __init__(self, features: Any, rows: Ids | None, slots: int) -> None:
        self._features = check_features(features)
        self._rows = rows
        self._slots = slots
        held = len(self._features) if rows is None else len(rows)
        if held != slots:
            raise InvalidInputError(
                f"features: expected {slots} rows, as many as codes, got {held}"
            )

    @property
    def width(self) -> int:
        """Width d of a feature vector."""
        return int(self._features.shape[1])

    def check_queries(self, features: Any, count: int) -> Features:
        """Features of ``count`` queries as float32, or ``InvalidInputError``."""
        queries = np.ascontiguousarray(check_features(features, "query features"), np.float32)
        expected = (count, self.width)
        if queries.shape != expected:
            raise InvalidInputError(f"query features: expected {expected}, got {queries.shape}")
        if not np.isfinite(queries).all():
            raise InvalidInputError("query features: expected finite values, got NaN or infinity")
        return queries

    def nearest(
        self, queries: Features, k: int, allowed: NDArray[np.bool_] | None, result: SearchResult
    ) -> None:
        """Write the k nearest of all allowed slots into ``result``, of at most k columns."""
        if not result.ids.shape[1]:
            return
        slot_of, mask = self._slot_of_row(allowed)
        found = nearest_candidates(self._features, queries, k, mask)
        pools = found if slot_of is None else [slot_of[rows] for rows in found]
        self.rank(pools, queries, result, 0)

    def rank(self, pools: list[Ids], queries: Features, result: SearchResult, at: int) -> None:
        """Order each pool of slots into a row of ``result``, ties by slot.

        Parameters
        ----------
        pools : list of ndarray, int64
            Slots, in any order; one pool a query.
        queries : ndarray of shape (len(pools), d), float32
            Features of the queries.
        result : SearchResult
            Filled from row ``at`` on, with as many as its width or the pool allows.
        at : int
            Row of the first query.
        """

        def some(first: int, last: int) -> None:
            for i in range(first, last):
                self._rank_one(pools[i], queries[i], result.ids[at + i], result.distances[at + i])

        tasks = [partial(some, *part) for part in split(len(pools), thread_count())]
        if pools:
            run_all(tasks)

    def _rank_one(self, pool: Ids, query: Any, ids: Any, distances: Any) -> None:
        if not len(pool) or not len(ids):
            return
        slots = np.sort(pool)
        rows = slots if self._rows is None else self._rows[slots]
        found = distances_to_rows(self._features, rows, query)
        k = min(len(ids), len(slots))
        near = np.flatnonzero(found <= np.partition(found, k - 1)[k - 1])
        order = near[np.argsort(found[near], kind="stable")[:k]]
        ids[:k], distances[:k] = slots[order], found[order]

    def _slot_of_row(
        self, allowed: NDArray[np.bool_] | None
    ) -> tuple[Ids | None, NDArray[np.bool_] | None]:
        """Each feature row's slot, and which rows are allowed."""
        if self._rows is None:
            return None, allowed
        slot_of = np.full(len(self._features), -1, np.int64)
        slot_of[self._rows] = np.arange(self._slots)
        mask = slot_of >= 0
        if allowed is not None:
            mask[self._rows] = allowed
        return slot_of, mask
