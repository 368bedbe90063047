"""Scores a searcher over encoded images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import (
    CUTOFF,
    Labels,
    Scores,
    average_precision,
    check_labels,
    counts_by_distance,
    euclidean_distances,
    expected_average_precision,
    hamming_distances,
    precision_at_k,
    precision_within_radius,
    shares_label,
)
from hashlens.evaluation.results import Evaluation, ModeScores
from hashlens.report.progress import ProgressBar
from hashlens.types import MODES, EncodedImages, Ids, Mode, Searcher, SearchOptions

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
    database, queries : EncodedImages
        What is searched, and with what.
    options : SearchOptions
        How; ``exclude`` holds a row of the database for each query.
    bits : int
        Length of a code.
    """

    searcher: Searcher
    database: EncodedImages
    queries: EncodedImages
    options: SearchOptions
    bits: int

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
        if self.options.mode == "bcs":
            queries, exclude = self.queries.rows(rows), self.options.exclude
            return Counts(
                *counts_by_distance(
                    self.database.codes,
                    queries.codes,
                    self.database.labels,
                    queries.labels,
                    bits=self.bits,
                    exclude=None if exclude is None else exclude[rows],
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
        exclude = self.options.exclude
        options = replace(self.options, k=k, exclude=None if exclude is None else exclude[rows])
        return self.searcher.search_encoded(queries.codes, queries.features, options).ids

    def _distances(self, queries: EncodedImages, row: int, ids: Ids) -> NDArray[np.float32]:
        if self.options.mode == "bcs":
            return hamming_distances(self.database.codes, queries.codes[row], ids)
        if not self.database.features.shape[1] or not queries.features.shape[1]:
            raise InvalidInputError(
                f"{self.options.mode} needs features of database and queries; score bcs without"
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


LOOKUP_RADIUS = 2  # the customary radius of "precision within radius"
_BLOCK = 256
_SHOWN = 10


def evaluate(
    searcher: Searcher,
    database: EncodedImages,
    queries: EncodedImages,
    *,
    bits: int,
    modes: Sequence[Mode] = MODES,
    radius: int | None = None,
    pool: int | None = None,
    exclude: Ids | None = None,
    classification_error: float | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score every mode of a searcher over encoded images.

    The searcher says which images it returns; their distances, and so their order and their ties,
    are computed here. Scores over ties of ``bcs`` count every code of the database. Those of
    ``hds`` take the pool as the searcher made it.

    Parameters
    ----------
    searcher : Searcher
        Its ids are rows of ``database``.
    database, queries : EncodedImages
        What is searched, and with what.
    bits : int
        Length of a code.
    modes : sequence of {"hds", "bcs", "es"}
        Ways to search that are scored.
    radius : int, optional
        Hamming radius of ``hds`` and ``bcs``.
    pool : int, optional
        Size of the pool of ``hds`` without radius; recommended, because the default pool depends
        on k.
    exclude : ndarray of shape (q,), int64, optional
        A row of the database a query that is left out of its results (-1: none), for queries
        that are themselves in the database.
    classification_error : float, optional
        Written into the result.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    Evaluation

    Raises
    ------
    InvalidInputError
        If database, queries and searcher do not fit each other, or there is no query.
    """
    _check(searcher, database, queries, exclude)
    scores = {
        mode: _evaluate_mode(
            Trial(
                searcher,
                database,
                queries,
                SearchOptions(
                    mode=mode,
                    radius=None if mode == "es" else radius,
                    pool=pool,
                    exclude=exclude,
                ),
                bits,
            ),
            progress,
        )
        for mode in modes
    }
    return Evaluation(bits, len(database), len(queries), scores, classification_error)


def top_class_error(scores: NDArray[np.float32], labels: Labels) -> float | None:
    """Share of labelled images whose highest class score is on a wrong class."""
    best = np.argmax(scores, axis=1)
    if labels.ndim == 2:
        held, right = labels.any(axis=1), labels[np.arange(len(best)), best]
    else:
        held, right = labels >= 0, labels == best
    return float(1 - right[held].mean()) if held.any() else None


def _check(
    searcher: Searcher, database: EncodedImages, queries: EncodedImages, exclude: Ids | None
) -> None:
    if len(searcher) != len(database):
        raise InvalidInputError(
            f"the searcher holds {len(searcher)} images, the database {len(database)}; "
            "they must be the same ones"
        )
    if not len(queries) or not len(database):
        raise InvalidInputError(
            f"expected at least one query and one database image, got {len(queries)} and "
            f"{len(database)}"
        )
    held = check_labels(database.labels, len(database), "database")
    asked = check_labels(queries.labels, len(queries), "queries")
    if held.shape[1:] != asked.shape[1:]:
        raise InvalidInputError(
            f"labels: database of shape {held.shape}, queries of shape {asked.shape}; expected "
            "one class an image in both, or the same list of classes"
        )
    if exclude is not None and exclude.shape != (len(queries),):
        raise InvalidInputError(
            f"exclude: expected one row a query, {len(queries)}, got {exclude.shape}"
        )


def _evaluate_mode(trial: Trial, progress: bool) -> ModeScores:
    count, mode, radius = len(trial.queries), trial.options.mode, trial.options.radius
    precision, average, expected = np.zeros(CUTOFF), np.zeros(count), np.zeros(count)
    nearest = np.full((count, _SHOWN), -1, dtype=np.int64)
    distances = np.full((count, _SHOWN), np.inf, dtype=np.float32)
    more: dict[str, list[Scores]] = {}
    bar = ProgressBar(f"search {mode}", count, hidden=not progress)
    for start in range(0, count, _BLOCK):
        rows = slice(start, min(start + _BLOCK, count))
        ranked = trial.ranked(rows)
        counts = trial.counts(rows, ranked)
        first = ranked.relevant[:, :CUTOFF]
        precision += precision_at_k(first, range(1, CUTOFF + 1)).sum(axis=0)
        average[rows] = average_precision(first)
        if mode == "bcs":
            for name, values in _code_scores(counts, ranked, radius).items():
                more.setdefault(name, []).append(values)
            counts = _within(counts, radius)
        expected[rows] = expected_average_precision(*counts)
        shown = min(_SHOWN, first.shape[1])
        nearest[rows, :shown] = ranked.ids[:, :shown]
        distances[rows, :shown] = ranked.distances[:, :shown]
        bar(len(first))
    bar.close()
    return ModeScores(
        float(average.mean()),
        float(expected.mean()),
        precision / count,
        trial.milliseconds_per_query(),
        nearest,
        distances,
        {name: float(np.concatenate(values).mean()) for name, values in more.items()},
    )


def _within(counts: Counts, radius: int | None) -> Counts:
    return counts if radius is None else Counts(*(part[:, : radius + 1] for part in counts))


def _code_scores(counts: Counts, ranked: Ranked, radius: int | None) -> dict[str, Scores]:
    """Scores that need the whole database: recall by distance, precision within a radius."""
    within = _within(counts, radius).sizes.cumsum(axis=1)
    wanted = np.minimum(within[:, -1], CUTOFF)
    last = np.argmax(within >= wanted[:, None], axis=1)
    near = (ranked.distances[:, :CUTOFF] <= last[:, None]).sum(axis=1)
    return {
        "recall@1000": np.where(wanted > 0, near / np.maximum(wanted, 1), 1.0),
        f"precision_within_radius_{LOOKUP_RADIUS}": precision_within_radius(*counts, LOOKUP_RADIUS),
    }
