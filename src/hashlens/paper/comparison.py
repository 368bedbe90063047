"""The comparison as a page: curves, tables and pictures, beside what was printed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from hashlens.baselines import create_method
from hashlens.baselines.pca import NeuralCodes
from hashlens.errors import MissingExtraError
from hashlens.evaluation.results import Evaluation, ModeScores
from hashlens.evaluation.scoring import evaluate, top_class_error
from hashlens.files import replace_file
from hashlens.index.ranking import ArraySearcher
from hashlens.paper.published import OURS, printed_figure, printed_map, printed_precision
from hashlens.paper.run import OBJECTIVES, DeepMethod, Piece, ResultStore, read_features
from hashlens.paper.splits import Split
from hashlens.report.page import Report
from hashlens.report.plot import COLOURS, DASHES, MARKERS, save_figure
from hashlens.report.sheet import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.report.table import Cell, Table
from hashlens.types import Codes, EncodedImages, Features, Mode
from hashlens.workflows.score import encode

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
    """All images of a split, encoded, and how long it took."""

    images: EncodedImages
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
            return Coded(replace(found, scores=scores), seconds, spent)
        features = self._features
        started = time.monotonic()
        options = self.piece.options.get(job.method, {})
        method = create_method(job.method, job.bits, seed=self.seed, **options)
        method.fit(features[self.split.rows.train], self.split.train.labels)
        fitted = time.monotonic()
        codes = method.encode(features)
        spent = time.monotonic() - fitted
        images = EncodedImages(
            codes, np.zeros((len(codes), 0), np.float32), self.split.images.labels
        )
        return Coded(images, fitted - started, spent)

    def score(self, job: Job) -> dict[str, Any]:
        """Encode, search with binary codes alone, and score; ours with the other ways as well."""
        started = time.monotonic()
        coded = self.encode(job)
        whole, rows = coded.images, self.split.rows
        euclidean = job.method == OURS and job.bits == self.piece.bits[0]
        database, queries = whole.rows(rows.database), whole.rows(rows.queries)
        error = None
        if queries.scores is not None:
            error = top_class_error(queries.scores, queries.labels)
        modes: tuple[Mode, ...] = ("bcs", "hds", "es") if euclidean else ("bcs",)
        searcher = ArraySearcher(database.codes, database.features if euclidean else None)
        found = evaluate(searcher, database, queries, bits=job.bits, modes=modes)
        scores: dict[str, Any] = {
            **_mode_scores(found.modes["bcs"]),
            "classification_error": error,
            "fit_seconds": coded.fit_seconds,
            "encode_seconds": coded.encode_seconds,
            "sheet": self._sheet(found, whole.codes, job.bits),
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

    def _neural_codes(self, whole: EncodedImages) -> dict[str, Any]:
        """Euclidean search over F7 compressed by PCA."""
        rows = self.split.rows
        dimensions = min(NEURAL_DIMENSIONS, whole.features.shape[1], len(rows.train))
        neural = NeuralCodes(dimensions).fit(whole.features[rows.train])
        compressed = EncodedImages(whole.codes, neural.transform(whole.features), whole.labels)
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


class Measured(NamedTuple):
    """Precision at k of a method, measured and printed (empty if it was not printed)."""

    precision: Mapping[str, float]
    printed: Mapping[int, float]


def comparison_figure(curves: Mapping[str, Measured], *, first: int = 100) -> Any:
    """Draw precision at k; names stand at the ends of their lines."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing plots", "train") from error
    figure = Figure(figsize=(8.6, 6.6))
    axes = figure.add_subplot()
    ends = {}
    for position, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[position % len(COLOURS)]
        points = [(int(k), value) for k, value in curve.precision.items() if int(k) >= first]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=MARKERS[position % len(MARKERS)],
            linestyle=DASHES[position // len(COLOURS)],
            linewidth=1.8,
            markersize=5,
        )
        if curve.printed:
            axes.plot(
                *zip(*sorted(curve.printed.items()), strict=True),
                color=colour,
                linestyle=":",
                linewidth=1.4,
                marker=MARKERS[position % len(MARKERS)],
                markersize=4,
                markerfacecolor="white",
            )
        ends[name] = (points[-1][1], colour)
    low, high = axes.get_ylim()
    for name, (height, place) in _spread(ends, (high - low) / 26).items():
        axes.annotate(
            name,
            (1000, height),
            xytext=(1025, place),
            color=ends[name][1],
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
    axes.set_xlabel("k")
    axes.set_ylabel("precision at k")
    axes.set_xlim(first - 20, 1010)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _spread(ends: Mapping[str, tuple[float, str]], gap: float) -> dict[str, tuple[float, float]]:
    """Heights of line ends, each with a height for its name at least ``gap`` above the last."""
    places: dict[str, tuple[float, float]] = {}
    last = -float("inf")
    for name, (height, _) in sorted(ends.items(), key=lambda item: item[1][0]):
        last = max(height, last + gap)
        places[name] = (height, last)
    return places


Kept: TypeAlias = Mapping[Job, Mapping[str, Any]]

_PRECISION_AT = (100, 400, 1000)
WAYS = {
    "es": "ES: exhaustive, Euclidean over F7",
    "bcs": "BCS: binary codes alone",
    "hds": "HDS: binary codes, then F7 in the pool",
    "neural codes": "Neural codes: ES over F7 compressed by PCA",
}


def _is_theirs(run: Comparison) -> bool:
    """Whether the printed figures are of this protocol; those of another do not compare."""
    return run.split.protocol == "paper"


def precision_table(run: Comparison, kept: Kept) -> Table:
    """Precision at k of every method at the curves' length, beside the printed one."""
    bits = run.piece.bits[0]
    printed = printed_precision(run.piece.name, bits) if _is_theirs(run) else {}
    compared = ["printed @1000", "difference"] if printed else []
    headers = ["method", *(f"@{k}" for k in _PRECISION_AT), *compared, "mAP@1000", "over ties"]
    headers += ["training s", "encoding s"]
    rows: list[list[Cell]] = []
    for method in run.piece.methods:
        scores = kept[Job(method, bits)]["scores"]
        found = scores["precision"]
        then = printed.get(method, {}).get(1000)
        beside: list[Cell] = [then, None if then is None else f"{found['1000'] - then:+.3f}"]
        rows.append(
            [
                method,
                *(found[str(k)] for k in _PRECISION_AT),
                *(beside if printed else []),
                scores["map@1000"],
                scores["map@1000_ties"],
                f"{scores['fit_seconds']:.1f}",
                f"{scores['encode_seconds']:.1f}",
            ]
        )
    return Table(headers, rows, digits=3)


def map_table(run: Comparison, kept: Kept) -> Table:
    """Mean average precision at 1,000 by code length, each beside the printed one."""
    lengths = sorted(run.piece.bits)
    printed = printed_map(run.piece.name) if _is_theirs(run) else {}
    headers = ["method"]
    for bits in lengths:
        headers += [f"{bits} bits", "printed"]
    rows: list[list[Cell]] = [
        [method]
        + [
            value
            for bits in lengths
            for value in (
                kept[Job(method, bits)]["scores"]["map@1000"],
                printed.get(method, {}).get(bits),
            )
        ]
        for method in run.piece.methods
    ]
    return Table(headers, rows, digits=3)


def error_table(run: Comparison, kept: Kept) -> Table:
    """Classification error on the queries, in per cent, of the methods that classify."""
    rows: list[list[Cell]] = []
    for job, result in sorted(kept.items(), key=lambda item: (item[0].method, item[0].bits)):
        error = result["scores"]["classification_error"]
        if error is None or job.bits not in run.piece.error_bits:
            continue
        then = None
        if job.method == OURS:
            then = printed_figure(run.piece.name, "classification_error", job.bits)
        rows.append([job.method, job.bits, 100 * error, None if then is None else 100 * then])
    return Table(["method", "bits", "error %", "printed %"], rows, digits=2)


def ways_table(run: Comparison, kept: Kept) -> Table | None:
    """Our three ways to search and neural codes: scores, time a query, and its ratio to ES."""
    if OURS not in run.piece.methods:
        return None
    ways = kept[Job(OURS, run.piece.bits[0])]["scores"]["ways"]
    slowest = ways["es"]["ms_per_query"]
    rows: list[list[Cell]] = [
        [
            text,
            ways[key]["precision"]["10"],
            ways[key]["precision"]["1000"],
            ways[key]["map@1000"],
            f"{ways[key]['ms_per_query']:.3f}",
            f"{slowest / ways[key]['ms_per_query']:.1f}",
        ]
        for key, text in WAYS.items()
    ]
    headers = [
        "way",
        "precision@10",
        "precision@1000",
        "mAP@1000",
        "ms per query",
        "ES time / time",
    ]
    return Table(headers, rows, digits=3)


def sheets(run: Comparison, kept: Kept) -> list[Image.Image]:
    """One picture a query: its five nearest by each method, and the bits of our code."""
    bits = run.piece.bits[0]
    results = {method: kept[Job(method, bits)]["scores"]["sheet"] for method in run.piece.methods}
    rows = {run.split.images.uris[row]: row for row in _shown_rows(results)}
    last = results[run.piece.methods[-1]]
    return [
        picture_sheet(
            [_sheet_query(run, results, position, last[position])],
            lambda uri: run.split.images.load(rows[uri]),
            tile=72,
        )
        for position in range(len(last))
    ]


def write_comparison(run: Comparison, kept: Kept, command: str) -> Path:
    """Write report.html and report.md with curves and sheets; returns the page."""
    piece, bits = run.piece, run.piece.bits[0]
    run.out.mkdir(parents=True, exist_ok=True)
    newest = max(kept.values(), key=lambda result: str(result["finished"]))
    report = Report(f"{piece.title}: hashing methods compared", run.split.describe())
    report.paragraph(
        f"Images: {run.split.images.spec}. Shallow methods work on {_features(run.features)}. "
        f"Seed {run.seed}. {newest['hardware']}; "
        + ", ".join(f"{name} {number}" for name, number in newest["versions"].items())
        + "."
    )
    report.heading(f"Precision at k with {bits} bits")
    printed = printed_precision(piece.name, bits) if _is_theirs(run) else {}
    curves = {
        method: Measured(kept[Job(method, bits)]["scores"]["precision"], printed.get(method, {}))
        for method in piece.methods
    }
    figure = save_figure(comparison_figure(curves), run.out, "precision_at_k")
    dotted = " Dotted: as the authors printed it." if printed else ""
    report.picture(
        figure,
        "Precision at k of every method",
        f"Search with binary codes alone (BCS); equal distances in the order of ids.{dotted}",
    )
    report.table(
        precision_table(run, kept),
        "Precision at k and mean average precision (over the relevant ones among the first 1,000; "
        "'over ties': its expectation over all orders of equal distances), binary codes alone. "
        "Training 0.0: a trained model was given.",
    )
    if len(piece.bits) > 1:
        report.heading("Mean average precision by code length")
        report.table(map_table(run, kept), "mAP@1000, binary codes alone.")
    errors = error_table(run, kept)
    if errors.rows:
        report.heading("Classification error")
        report.table(errors, "On the queries. The shallow methods do not classify.")
    ways = ways_table(run, kept)
    if ways is not None:
        report.heading("Ways to search with our network")
        report.table(
            ways,
            f"{bits} bits. Time: median of single queries for ten results, encoding not included.",
        )
    report.heading("Nearest pictures")
    for number, sheet in enumerate(sheets(run, kept), 1):
        name = f"query_{number}.png"
        replace_file(run.out / name, partial(sheet.save, optimize=True))
        report.picture(sheet, f"Query {number} with its five nearest by each method", file=name)
    report.paragraph(
        "Queries spread over the classes, the same for every method. Blue frame and tick: the "
        "query's class; orange frame and cross: another. Under a picture its class and how many "
        f"bits differ. The squares are the bits of {piece.methods[-1]}'s code of the query, filled "
        "where 1."
    )
    report.heading("Command")
    report.commands(command)
    return report.write(run.out)


def typed(arguments: Sequence[str]) -> str:
    """A command line as it is typed."""
    return "hashlens " + shlex.join(arguments)


def _features(kind: str) -> str:
    return {"gist": "GIST (512)", "pixels": "raw pixels"}.get(kind, f"F7 of {kind}")


def _shown_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[int]:
    shown: set[int] = set()
    for entries in results.values():
        for entry in entries:
            shown |= {entry["query"], *entry["nearest"]}
    return shown


def _sheet_query(
    run: Comparison,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    position: int,
    drawn: Mapping[str, Any],
) -> SheetQuery:
    images = run.split.images
    query = drawn["query"]
    nearest = {
        method: [
            Neighbour(
                images.uris[row],
                images.classes[images.labels[row]],
                f"{distance} bits",
                bool(images.labels[row] == images.labels[query]),
            )
            for row, distance in zip(
                entries[position]["nearest"], entries[position]["distances"], strict=True
            )
        ]
        for method, entries in results.items()
    }
    code = np.frombuffer(bytes.fromhex(drawn["code"]), np.uint8)[None]
    bits = code_bits(code, 0, drawn["bits"])
    return SheetQuery(images.uris[query], images.classes[images.labels[query]], nearest, bits)
