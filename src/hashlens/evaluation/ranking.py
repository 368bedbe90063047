"""What a searcher returns, ranked by distances computed here, with its ties."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import CUTOFF
from hashlens.evaluation.relevance import (
    counts_by_distance,
    euclidean_distances,
    hamming_distances,
    shares_label,
)
from hashlens.evaluation.results import EncodedSet
from hashlens.protocols import Ids, Mode, Searcher

_TIMED_QUERIES, _TIMED_K, _TIMED_SECONDS = 100, 10, 10.0


class Ranked(NamedTuple):
    """Results of some queries, ordered by (distance, id).

    Attributes
    ----------
    ids : ndarray of shape (q, k), int64
        Rows of the database; -1 where there are fewer.
    distances : ndarray of shape (q, k), float32
        Hamming for ``bcs``, Euclidean otherwise; inf beside id -1.
    relevant : ndarray of shape (q, k), bool
    """

    ids: Ids
    distances: NDArray[np.float32]
    relevant: NDArray[np.bool_]


class Counts(NamedTuple):
    """Images, and relevant ones, at each distance, nearest first; both (q, g) int64."""

    sizes: NDArray[np.int64]
    relevant: NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """One way to search a database with some queries.

    Attributes
    ----------
    searcher : Searcher
        Its ids are rows of ``database``.
    database, queries : EncodedSet
        What is searched, and with what.
    mode : {"hds", "bcs", "es"}
        How.
    bits : int
        Length of a code.
    radius : int or None
        Hamming radius of ``hds`` and ``bcs``.
    pool : int or None
        Size of the pool of ``hds`` without radius, for searchers that take one.
    exclude : ndarray of shape (q,), int64, or None
        A row of the database a query that is left out of its results (-1: none).
    """

    searcher: Searcher
    database: EncodedSet
    queries: EncodedSet
    mode: Mode
    bits: int
    radius: int | None = None
    pool: int | None = None
    exclude: Ids | None = None

    def ranked(self, rows: slice, k: int = CUTOFF + 1) -> Ranked:
        """Results of some queries; the searcher says which, distances computed here say where."""
        queries = self.queries.rows(rows)
        ids = self._search(rows, k)
        distances = np.empty(ids.shape, dtype=np.float32)
        for row, returned in enumerate(ids):
            distances[row] = self._distances(queries, row, returned)
        order = np.lexsort((ids, distances), axis=-1)
        ids = np.take_along_axis(ids, order, axis=1)
        relevant = np.zeros(ids.shape, dtype=np.bool_)
        for row, returned in enumerate(ids):
            held = returned >= 0
            labels = self.database.labels[returned[held]]
            relevant[row, held] = shares_label(queries.labels[row : row + 1], labels)[0]
        return Ranked(ids, np.take_along_axis(distances, order, axis=1), relevant)

    def counts(self, rows: slice, ranked: Ranked) -> Counts:
        """Counts by distance of some queries, complete at least up to the cutoff.

        For ``bcs`` they are those of the whole database, at Hamming distances 0, 1, ..., bits,
        whatever the radius.
        """
        if self.mode == "bcs":
            queries = self.queries.rows(rows)
            return Counts(
                *counts_by_distance(
                    self.database.codes,
                    queries.codes,
                    self.database.labels,
                    queries.labels,
                    bits=self.bits,
                    exclude=None if self.exclude is None else self.exclude[rows],
                )
            )
        counts = _runs(ranked)
        if ranked.distances.shape[1] > CUTOFF:
            last, after = ranked.distances[:, CUTOFF - 1], ranked.distances[:, CUTOFF]
            for row in np.flatnonzero((last == after) & np.isfinite(last)):
                self._complete_last_group(counts, rows.start + int(row), int(row))
        return counts

    def milliseconds_per_query(self) -> float:
        """Median over 100 queries, each searched alone for ten results, after a warm-up."""
        rows = np.random.default_rng(0).permutation(len(self.queries))[:_TIMED_QUERIES]
        times: list[float] = []
        for row in [rows[0], *rows]:
            start = time.perf_counter()
            self._search(slice(int(row), int(row) + 1), _TIMED_K)
            times.append(time.perf_counter() - start)
            if len(times) > 1 and sum(times) > _TIMED_SECONDS:
                break
        return 1000 * float(np.median(times[1:]))

    def _search(self, rows: slice, k: int) -> Ids:
        queries = self.queries.rows(rows)
        # Without a fixed pool a searcher may choose another one for another k.
        pinned = self.pool is not None and self.mode == "hds"
        pool: dict[str, Any] = {"pool": self.pool} if pinned else {}
        return self.searcher.search_encoded(
            queries.codes,
            queries.features,
            k,
            mode=self.mode,
            radius=None if self.mode == "es" else self.radius,
            exclude=None if self.exclude is None else self.exclude[rows],
            **pool,
        ).ids

    def _distances(self, queries: EncodedSet, row: int, ids: Ids) -> NDArray[np.float32]:
        if self.mode == "bcs":
            return hamming_distances(self.database.codes, queries.codes[row], ids)
        if self.database.features is None or queries.features is None:
            raise InvalidInputError(
                f"{self.mode} needs features of database and queries; score bcs without them"
            )
        return euclidean_distances(self.database.features, queries.features[row], ids)

    def _complete_last_group(self, counts: Counts, query: int, row: int) -> None:
        """Where the result after the cutoff is tied with the one before, count all that are."""
        everything = self.ranked(slice(query, query + 1), len(self.searcher))
        complete = _runs(everything)
        first = everything.distances[0, :CUTOFF]
        group = int(np.count_nonzero(np.diff(first)))
        for part, whole in zip(counts, complete, strict=True):
            part[row, group:] = 0
            part[row, group] = whole[0, group]


def _runs(ranked: Ranked) -> Counts:
    """Counts by distance, one column a run of equal distances."""
    distances = ranked.distances
    starts = np.ones(distances.shape, dtype=np.bool_)
    starts[:, 1:] = distances[:, 1:] != distances[:, :-1]
    group = np.cumsum(starts, axis=1) - 1
    held = np.isfinite(distances)
    row = np.broadcast_to(np.arange(len(distances))[:, None], distances.shape)
    counts = Counts(*(np.zeros(distances.shape, dtype=np.int64) for _ in range(2)))
    np.add.at(counts.sizes, (row[held], group[held]), 1)
    np.add.at(counts.relevant, (row[held], group[held]), ranked.relevant[held])
    return counts
