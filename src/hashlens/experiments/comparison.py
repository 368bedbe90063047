"""The paper's comparison on one data set: every method, trained, encoded and scored alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from hashlens.baselines import METHODS
from hashlens.baselines.pca import NeuralCodes
from hashlens.evaluation.results import EncodedSet, Evaluation, ModeScores
from hashlens.evaluation.runner import evaluate, top_class_error
from hashlens.experiments.deep import OBJECTIVES, DeepMethod
from hashlens.experiments.features import read_features
from hashlens.experiments.pieces import Piece
from hashlens.experiments.published import OURS
from hashlens.experiments.results import ResultStore
from hashlens.experiments.score_model import encode
from hashlens.experiments.splits import Split
from hashlens.index.arrays import ArraySearcher
from hashlens.protocols import Codes, Features, Mode

KS = (1, 5, 10, 50, *range(100, 1001, 100))
NEURAL_DIMENSIONS = 128
_SHEET_QUERIES, _SHEET_NEAREST = 3, 5
_TRAINED_SECONDS = 120.0  # encoding and searching with a model that is given


class Job(NamedTuple):
    """A method with codes of some length."""

    method: str
    bits: int

    @property
    def name(self) -> str:
        """What its result is kept under."""
        return f"{self.method}-{self.bits}"


class Coded(NamedTuple):
    """Codes of all images of a split, and what else a network says of them."""

    codes: Codes
    features: Features | None
    scores: NDArray[np.float32] | None
    fit_seconds: float
    encode_seconds: float


@dataclass(frozen=True)
class Comparison:
    """One run of a piece.

    Attributes
    ----------
    piece : Piece
        What is compared.
    split : Split
        On which images.
    out : Path
        Where features, models and results are kept.
    features : str
        What shallow methods work on; see ``features.read_features``.
    seed : int
        Of every method.
    models : mapping of int to Path
        Trained models of our method, by their bits.
    console : Console
        Where progress is shown.
    """

    piece: Piece
    split: Split
    out: Path
    features: str
    seed: int = 0
    models: Mapping[int, Path] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def jobs(self) -> list[Job]:
        """Everything to run: all methods at the curves' length, then the other lengths."""
        jobs = [Job(method, bits) for bits in self.piece.bits for method in self.piece.methods]
        if OURS in self.piece.methods:
            jobs += [Job(OURS, bits) for bits in self.piece.error_bits]
        return list(dict.fromkeys(jobs))

    def expected_seconds(self) -> float:
        """How long what is not kept yet takes on two cores, roughly."""
        return sum(self._expected(job) for job in self.jobs() if self._kept(job) is None)

    def run(self) -> dict[Job, dict[str, Any]]:
        """Run what is not kept yet; returns what is kept of every job."""
        jobs, kept = self.jobs(), {}
        left = self.expected_seconds()
        for position, job in enumerate(jobs, 1):
            found = self._kept(job)
            again = found is not None
            if found is None:
                self._say(f"[{position}/{len(jobs)}] {job.method}, {job.bits} bits ...")
                configuration = self.configuration(job)
                found = self._store.put(job.name, configuration, self.score(job))
                left -= self._expected(job)
            kept[job] = found
            scores = found["scores"]
            self._say(
                f"[{position}/{len(jobs)}] {job.method}, {job.bits} bits: "
                f"precision@1000 {scores['precision']['1000']:.3f}, "
                f"mAP@1000 {scores['map@1000']:.3f} "
                f"({'kept from before' if again else spoken_time(scores['seconds'])}); "
                f"about {spoken_time(max(left, 0))} left"
            )
        return kept

    def configuration(self, job: Job) -> dict[str, Any]:
        """All that decides a job's result, as JSON values."""
        rows = self.split.rows
        configuration: dict[str, Any] = {
            "piece": self.piece.name,
            "images": self.split.images.spec,
            "protocol": self.split.protocol,
            "training": len(rows.train),
            "database": len(rows.database),
            "queries": len(rows.queries),
            "bits": job.bits,
            "seed": self.seed,
        }
        if job.method in OBJECTIVES:
            return configuration | self._deep(job).configuration(self.split.train)
        options = dict(self.piece.options.get(job.method, {}))
        return configuration | {"features": self.features, "options": options}

    def encode(self, job: Job) -> Coded:
        """Train a method on the training images and their labels, and encode every image."""
        if job.method in OBJECTIVES:
            encoder, seconds = self._deep(job).encoder(self.split.train, self.out / "models")
            started = time.monotonic()
            found = encode(encoder, self.split.images, strict=True, progress=True)
            spent = time.monotonic() - started
            scores = self._own_classes(found.scores, encoder.classes)
            return Coded(found.codes, found.features, scores, seconds, spent)
        features = self._features
        started = time.monotonic()
        options = self.piece.options.get(job.method, {})
        method = METHODS[job.method](job.bits, seed=self.seed, **options)
        method.fit(features[self.split.rows.train], self.split.train.labels)
        fitted = time.monotonic()
        codes = method.encode(features)
        return Coded(codes, None, None, fitted - started, time.monotonic() - fitted)

    def score(self, job: Job) -> dict[str, Any]:
        """Encode, search with binary codes alone, and score; ours with the other ways as well."""
        started = time.monotonic()
        coded = self.encode(job)
        rows, labels = self.split.rows, self.split.images.labels
        euclidean = job.method == OURS and job.bits == self.piece.bits[0]
        whole = EncodedSet(coded.codes, coded.features if euclidean else None, labels)
        database, queries = whole.rows(rows.database), whole.rows(rows.queries)
        error = None
        if coded.scores is not None:
            error = top_class_error(coded.scores[rows.queries], queries.labels)
        modes: tuple[Mode, ...] = ("bcs", "hds", "es") if euclidean else ("bcs",)
        searcher = ArraySearcher(database.codes, database.features)
        found = evaluate(searcher, database, queries, bits=job.bits, modes=modes)
        scores: dict[str, Any] = {
            **_mode_scores(found.modes["bcs"]),
            "classification_error": error,
            "fit_seconds": coded.fit_seconds,
            "encode_seconds": coded.encode_seconds,
            "sheet": self._sheet(found, coded.codes, job.bits),
        }
        if euclidean:
            scores["ways"] = {mode: _mode_scores(found.modes[mode]) for mode in modes}
            scores["ways"]["neural codes"] = self._neural_codes(whole)
        scores["seconds"] = time.monotonic() - started
        return scores

    @cached_property
    def _store(self) -> ResultStore:
        return ResultStore(self.out / "results")

    def _kept(self, job: Job) -> dict[str, Any] | None:
        return self._store.get(job.name, self.configuration(job))

    def _deep(self, job: Job) -> DeepMethod:
        model = self.models.get(job.bits) if job.method == OURS else None
        return DeepMethod(job.method, job.bits, self.piece.training, self.seed, model)

    @cached_property
    def _features(self) -> Features:
        return read_features(
            self.features,
            self.split.images,
            self.piece.size,
            self.piece.channels,
            self.out / "features",
            self.console,
        )

    def _own_classes(
        self, scores: NDArray[np.float32] | None, classes: tuple[str, ...]
    ) -> NDArray[np.float32] | None:
        """A model's scores in the order of the split's classes; None if it knows others."""
        if scores is None or set(classes) != set(self.split.images.classes):
            return None
        return scores[:, [classes.index(name) for name in self.split.images.classes]]

    def _neural_codes(self, whole: EncodedSet) -> dict[str, Any]:
        """Euclidean search over F7 compressed by PCA."""
        assert whole.features is not None
        rows = self.split.rows
        dimensions = min(NEURAL_DIMENSIONS, whole.features.shape[1], len(rows.train))
        neural = NeuralCodes(dimensions).fit(whole.features[rows.train])
        compressed = EncodedSet(whole.codes, neural.transform(whole.features), whole.labels)
        database, queries = compressed.rows(rows.database), compressed.rows(rows.queries)
        searcher = ArraySearcher(database.codes, database.features)
        found = evaluate(
            searcher, database, queries, bits=8 * database.codes.shape[1], modes=["es"]
        )
        return _mode_scores(found.modes["es"]) | {"dimensions": dimensions}

    def _sheet(self, found: Evaluation, codes: Codes, bits: int) -> list[dict[str, Any]]:
        """A few queries, the same for every method, with their nearest images."""
        rows, nearest = self.split.rows, found.modes["bcs"]
        # Spread over the classes: the first of some, by the queries' order within them.
        by_class = np.argsort(self.split.images.labels[rows.queries], kind="stable")
        count = min(_SHEET_QUERIES, len(rows.queries))
        chosen = by_class[(2 * np.arange(count) + 1) * len(by_class) // (2 * count)]
        return [
            {
                "query": int(rows.queries[query]),
                "code": codes[rows.queries[query]].tobytes().hex(),
                "bits": bits,
                "nearest": rows.database[nearest.nearest[query, :_SHEET_NEAREST]].tolist(),
                "distances": nearest.distances[query, :_SHEET_NEAREST].astype(int).tolist(),
            }
            for query in np.sort(chosen).tolist()
        ]

    def _expected(self, job: Job) -> float:
        if job.method == OURS and job.bits in self.models:
            return _TRAINED_SECONDS
        return float(self.piece.seconds.get(job.method, 0.0))

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _mode_scores(scores: ModeScores) -> dict[str, Any]:
    return {
        "precision": {str(k): float(scores.precision[k - 1]) for k in KS},
        "map@1000": scores.mean_average_precision,
        "map@1000_ties": scores.expected_mean_average_precision,
        "ms_per_query": scores.ms_per_query,
    }


def spoken_time(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
