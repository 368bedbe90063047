"""Scores of a searcher over encoded images: precision, average precision, ties and time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.search import hamming_distances
from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import (
    CUTOFF,
    PRECISION_AT,
    LabelArray,
    Scores,
    average_precision,
    check_labels,
    counts_by_distance,
    expected_average_precision,
    precision_at_k,
    precision_within_radius,
    shares_label,
)
from hashlens.report.progress import ProgressBar
from hashlens.types import MODES, EncodedImages, Ids, Mode, Searcher, SearchOptions

LOOKUP_RADIUS = 2  # the customary radius of "precision within radius"
_BLOCK = 256
_SHOWN = 10
_TIMED_QUERIES, _TIMED_K, _TIMED_SECONDS = 100, 10, 10.0


@dataclass(frozen=True)
class ModeScores:
    """Means over all queries, for one way to search.

    Attributes
    ----------
    mean_average_precision : float
        ``average_precision`` at 1,000, ties in the order of ids.
    expected_mean_average_precision : float
        The same in expectation over ties.
    precision : ndarray of shape (1000,), float64
        Precision at k for k = 1, 2, ...
    ms_per_query : float
        Median time of one query alone, ten results, in milliseconds.
    nearest : ndarray of shape (q, 10), int64
        Rows of the database, nearest first; -1 where there are fewer.
    distances : ndarray of shape (q, 10), float32
        Their distances: Hamming for ``bcs``, Euclidean otherwise.
    more : mapping of str to float
        Scores of this mode alone.
    """

    mean_average_precision: float
    expected_mean_average_precision: float
    precision: Scores = field(repr=False)
    ms_per_query: float
    nearest: Ids = field(repr=False)
    distances: NDArray[np.float32] = field(repr=False)
    more: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float]:
        """Keys as ``evaluate --json`` prints them."""
        return {
            "map@1000": self.mean_average_precision,
            "map@1000_ties": self.expected_mean_average_precision,
            **{f"precision@{k}": float(self.precision[k - 1]) for k in PRECISION_AT},
            **self.more,
            "ms_per_query": self.ms_per_query,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one database and its queries.

    Attributes
    ----------
    bits, n_database, n_queries : int
        Length of a code, images searched, queries.
    modes : mapping of str to ModeScores
        Scores of each way to search.
    classification_error : float or None
        Share of queries whose highest class score is on a wrong class; None without scores.
    """

    bits: int
    n_database: int
    n_queries: int
    modes: Mapping[Mode, ModeScores]
    classification_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Keys as ``evaluate --json`` prints them."""
        return {
            "bits": self.bits,
            "n_database": self.n_database,
            "n_queries": self.n_queries,
            "classification_error": self.classification_error,
            **{mode: scores.to_dict() for mode, scores in self.modes.items()},
        }


def score_searcher(
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

    The searcher decides which images it returns; their distances, and so their order and their
    ties, are computed here. Scores over ties of ``bcs`` count every code of the database. Those of
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
        For each query, a row of the database that is left out of its results (-1: none), where
        queries are themselves in the database.
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
    scores: dict[Mode, ModeScores] = {}
    for mode in modes:
        within = None if mode == "es" else radius
        options = SearchOptions(mode=mode, radius=within, pool=pool, exclude=exclude)
        with ProgressBar(f"search {mode}", len(queries), hidden=not progress) as bar:
            scores[mode] = _ModeRun(searcher, database, queries, options, bits).scores(bar)
    return Evaluation(bits, len(database), len(queries), scores, classification_error)


def top_class_error(scores: NDArray[np.float32], labels: LabelArray) -> float | None:
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
            "one class per image in both, or the same list of classes"
        )
    if exclude is not None and exclude.shape != (len(queries),):
        raise InvalidInputError(
            f"exclude: expected one row per query, {len(queries)}, got {exclude.shape}"
        )


class _Ranked(NamedTuple):
    """Results of some queries, ordered by (distance, id), all of shape (q, k).

    Past the last result the id is -1, the distance infinite, and nothing relevant.
    """

    ids: Ids
    distances: NDArray[np.float32]
    relevant: NDArray[np.bool_]


class _Counts(NamedTuple):
    """Images, and relevant ones, at each distance, nearest first; both (q, g) int64."""

    sizes: NDArray[np.int64]
    relevant: NDArray[np.int64]

    def within(self, radius: int | None) -> _Counts:
        return self if radius is None else _Counts(*(part[:, : radius + 1] for part in self))


@dataclass(frozen=True)
class _ModeRun:
    """One way to search a database with some queries."""

    searcher: Searcher
    database: EncodedImages
    queries: EncodedImages
    options: SearchOptions
    bits: int

    def scores(self, bar: ProgressBar) -> ModeScores:
        """Scores of all queries, in blocks."""
        count, radius = len(self.queries), self.options.radius
        precision, average, expected = np.zeros(CUTOFF), np.zeros(count), np.zeros(count)
        nearest = np.full((count, _SHOWN), -1, dtype=np.int64)
        distances = np.full((count, _SHOWN), np.inf, dtype=np.float32)
        more: dict[str, list[Scores]] = {}
        for start in range(0, count, _BLOCK):
            rows = slice(start, min(start + _BLOCK, count))
            ranked = self._ranked(rows)
            counts = self._counts(rows, ranked)
            first = ranked.relevant[:, :CUTOFF]
            precision += precision_at_k(first, range(1, CUTOFF + 1)).sum(axis=0)
            average[rows] = average_precision(first)
            if self.options.mode == "bcs":
                for name, values in _code_scores(counts, ranked, radius).items():
                    more.setdefault(name, []).append(values)
                counts = counts.within(radius)
            expected[rows] = expected_average_precision(*counts)
            shown = min(_SHOWN, first.shape[1])
            nearest[rows, :shown] = ranked.ids[:, :shown]
            distances[rows, :shown] = ranked.distances[:, :shown]
            bar(len(first))
        return ModeScores(
            float(average.mean()),
            float(expected.mean()),
            precision / count,
            self._milliseconds_per_query(),
            nearest,
            distances,
            {name: float(np.concatenate(values).mean()) for name, values in more.items()},
        )

    def _ranked(self, rows: slice, k: int = CUTOFF + 1) -> _Ranked:
        """Results of some queries: which ones is up to the searcher, at what distance is not."""
        queries = self.queries.rows(rows)
        ids = self._search(rows, k)
        distances = np.full(ids.shape, np.inf, dtype=np.float32)
        relevant = np.zeros(ids.shape, dtype=np.bool_)
        for row, returned in enumerate(ids):
            held = returned >= 0
            distances[row, held] = self._distances(queries, row, returned[held])
            labels = self.database.labels[returned[held]]
            relevant[row, held] = shares_label(queries.labels[row : row + 1], labels)[0]
        order = np.lexsort((ids, distances), axis=-1)
        return _Ranked(
            np.take_along_axis(ids, order, axis=1),
            np.take_along_axis(distances, order, axis=1),
            np.take_along_axis(relevant, order, axis=1),
        )

    def _search(self, rows: slice, k: int) -> Ids:
        queries, exclude = self.queries.rows(rows), self.options.exclude
        options = replace(self.options, k=k, exclude=None if exclude is None else exclude[rows])
        return self.searcher.search_encoded(queries.codes, queries.features, options).ids

    def _distances(self, queries: EncodedImages, row: int, ids: Ids) -> NDArray[Any]:
        if self.options.mode == "bcs":
            return hamming_distances(self.database.codes, queries.codes[row], ids)
        if not self.database.features.shape[1] or not queries.features.shape[1]:
            raise InvalidInputError(
                f"{self.options.mode} needs features of database and queries; score bcs without"
            )
        offsets = self.database.features[ids].astype(np.float32) - queries.features[row]
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", offsets, offsets)))

    def _counts(self, rows: slice, ranked: _Ranked) -> _Counts:
        """Counts by distance of some queries, complete at least up to the cutoff.

        For ``bcs`` they are those of the whole database, at Hamming distances 0, 1, ..., bits,
        whatever the radius.
        """
        if self.options.mode == "bcs":
            queries, exclude = self.queries.rows(rows), self.options.exclude
            return _Counts(
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

    def _complete_last_group(self, counts: _Counts, query: int, row: int) -> None:
        """Where the result after the cutoff is tied with the one before, count all that are."""
        everything = self._ranked(slice(query, query + 1), len(self.searcher))
        complete = _runs(everything)
        first = everything.distances[0, :CUTOFF]
        group = int(np.count_nonzero(np.diff(first)))
        for part, whole in zip(counts, complete, strict=True):
            part[row, group:] = 0
            part[row, group] = whole[0, group]

    def _milliseconds_per_query(self) -> float:
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


def _runs(ranked: _Ranked) -> _Counts:
    """Counts by distance, with one column for each run of equal distances."""
    distances = ranked.distances
    starts = np.ones(distances.shape, dtype=np.bool_)
    starts[:, 1:] = distances[:, 1:] != distances[:, :-1]
    group = np.cumsum(starts, axis=1) - 1
    held = np.isfinite(distances)
    row = np.broadcast_to(np.arange(len(distances))[:, None], distances.shape)
    counts = _Counts(*(np.zeros(distances.shape, dtype=np.int64) for _ in range(2)))
    np.add.at(counts.sizes, (row[held], group[held]), 1)
    np.add.at(counts.relevant, (row[held], group[held]), ranked.relevant[held])
    return counts


def _code_scores(counts: _Counts, ranked: _Ranked, radius: int | None) -> dict[str, Scores]:
    """Scores that need the whole database: recall by distance, precision within a radius."""
    within = counts.within(radius).sizes.cumsum(axis=1)
    wanted = np.minimum(within[:, -1], CUTOFF)
    last = np.argmax(within >= wanted[:, None], axis=1)
    near = (ranked.distances[:, :CUTOFF] <= last[:, None]).sum(axis=1)
    return {
        "recall@1000": np.where(wanted > 0, near / np.maximum(wanted, 1), 1.0),
        f"precision_within_radius_{LOOKUP_RADIUS}": precision_within_radius(*counts, LOOKUP_RADIUS),
    }
