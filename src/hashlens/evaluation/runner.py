"""Scores a searcher over encoded images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import (
    CUTOFF,
    Scores,
    average_precision,
    expected_average_precision,
    precision_at_k,
    precision_within_radius,
)
from hashlens.evaluation.ranking import Counts, Ranked, Trial
from hashlens.evaluation.relevance import Labels, check_labels
from hashlens.evaluation.results import EncodedSet, Evaluation, ModeScores
from hashlens.protocols import MODES, Ids, Mode, Searcher

LOOKUP_RADIUS = 2  # the customary radius of "precision within radius"
_BLOCK = 256
_SHOWN = 10


def evaluate(
    searcher: Searcher,
    database: EncodedSet,
    queries: EncodedSet,
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
    database, queries : EncodedSet
        What is searched, and with what.
    bits : int
        Length of a code.
    modes : sequence of {"hds", "bcs", "es"}
        Ways to search that are scored.
    radius : int, optional
        Hamming radius of ``hds`` and ``bcs``.
    pool : int, optional
        Size of the pool of ``hds`` without radius, for searchers that take one; recommended, as
        a searcher may choose another pool for another k.
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
            Trial(searcher, database, queries, mode, bits, radius, pool, exclude), progress
        )
        for mode in modes
    }
    return Evaluation(bits, len(database), len(queries), scores, classification_error)


def top_class_error(scores: NDArray[np.float32], labels: Labels) -> float | None:
    """Share of labelled images whose highest class score is on a wrong class.

    Parameters
    ----------
    scores : ndarray of shape (n, classes), float32
        Class scores.
    labels : ndarray of shape (n,), int64, or (n, classes), bool
        Of many labels, any one is right.

    Returns
    -------
    float or None
        None where no image is labelled.
    """
    best = np.argmax(scores, axis=1)
    if labels.ndim == 2:
        held, right = labels.any(axis=1), labels[np.arange(len(best)), best]
    else:
        held, right = labels >= 0, labels == best
    return float(1 - right[held].mean()) if held.any() else None


def _check(
    searcher: Searcher, database: EncodedSet, queries: EncodedSet, exclude: Ids | None
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
    count = len(trial.queries)
    precision, average, expected = np.zeros(CUTOFF), np.zeros(count), np.zeros(count)
    nearest = np.full((count, _SHOWN), -1, dtype=np.int64)
    distances = np.full((count, _SHOWN), np.inf, dtype=np.float32)
    more: dict[str, list[Scores]] = {}
    console = Console(stderr=True)
    steps = range(0, count, _BLOCK)
    for start in track(steps, f"search {trial.mode}", console=console, disable=not progress):
        rows = slice(start, min(start + _BLOCK, count))
        ranked = trial.ranked(rows)
        counts = trial.counts(rows, ranked)
        first = ranked.relevant[:, :CUTOFF]
        precision += precision_at_k(first, range(1, CUTOFF + 1)).sum(axis=0)
        average[rows] = average_precision(first)
        if trial.mode == "bcs":
            for name, values in _code_scores(counts, ranked, trial.radius).items():
                more.setdefault(name, []).append(values)
            counts = _within(counts, trial.radius)
        expected[rows] = expected_average_precision(*counts)
        shown = min(_SHOWN, first.shape[1])
        nearest[rows, :shown] = ranked.ids[:, :shown]
        distances[rows, :shown] = ranked.distances[:, :shown]
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
