"""What an evaluation takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.evaluation.metrics import PRECISION_AT, Scores
from hashlens.types import Ids, Mode


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
    precision: Scores
    ms_per_query: float
    nearest: Ids
    distances: NDArray[np.float32]
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
        By way to search.
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
