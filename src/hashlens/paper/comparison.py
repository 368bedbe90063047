"""``hashlens reproduce mnist`` and ``cifar10``: all methods compared, and the page about it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from sklearn.preprocessing import normalize

from hashlens.baselines import create_method
from hashlens.baselines.base import principal_components
from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.data.tables import JoinedImages
from hashlens.errors import InvalidInputError, SourceError
from hashlens.evaluation.scoring import ModeScores, top_class_error
from hashlens.files import replace_file
from hashlens.models.encoder import Encoder
from hashlens.paper import runs
from hashlens.paper.gist import gist
from hashlens.report.page import Cell, Page, Table
from hashlens.report.plot import Curve, plot_curves
from hashlens.report.progress import ProgressBar, say
from hashlens.training.config import TrainingConfig
from hashlens.types import Codes, EncodedImages, Features, Ids, Mode
from hashlens.workflows.score import encode, renumbered

KINDS = ("pixels", "gist")
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


Kept: TypeAlias = Mapping[Job, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """One run of a piece on a split; features, models and results are kept in ``out``.

    Shallow methods work on ``features``: pixels, gist, or F7 of a model. ``models`` are trained
    models of our method, by their bits.
    """

    piece: runs.Piece
    split: PaperSplit
    out: Path
    features: str
    seed: int = 0
    models: Mapping[int, Path] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def jobs(self) -> list[Job]:
        """Everything to run: all methods at the curves' length, then the other lengths."""
        jobs = [Job(method, bits) for bits in self.piece.bits for method in self.piece.methods]
        if runs.OURS in self.piece.methods:
            jobs += [Job(runs.OURS, bits) for bits in self.piece.error_bits]
        return list(dict.fromkeys(jobs))

    def expected_seconds(self) -> float:
        """How long what is not kept yet takes on two cores, roughly."""
        return sum(self._expected(job) for job in self.jobs() if self._kept(job) is None)

    def run(self) -> dict[Job, dict[str, Any]]:
        """Run what is not kept yet; returns what is kept of every job."""
        jobs, kept = self.jobs(), {}
        left = self.expected_seconds()
        for position, job in enumerate(jobs, 1):
            what = f"[{position}/{len(jobs)}] {job.method}, {job.bits} bits"
            found, spent = self._kept(job), "kept from before"
            if found is None:
                say(self.console, f"{what} ...")
                found = self._store.put(job.name, self.configuration(job), self.score(job))
                left -= self._expected(job)
                spent = spoken_time(found["scores"]["seconds"])
            kept[job], scores = found, found["scores"]
            say(
                self.console,
                f"{what}: precision@1000 {scores['precision']['1000']:.3f}, mAP@1000 "
                f"{scores['map@1000']:.3f} ({spent}); about {spoken_time(max(left, 0))} left",
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
        if job.method in runs.OBJECTIVES:
            return configuration | self._deep_configuration(job)
        options = dict(self.piece.options.get(job.method, {}))
        return configuration | {"features": self.features, "options": options}

    def encode(self, job: Job) -> tuple[EncodedImages, float, float]:
        """Train a method on the training images and their labels, and encode every image.

        Next to the images: the seconds of training, and of encoding.
        """
        train, images = self.split.train, self.split.images
        if job.method in runs.OBJECTIVES:
            encoder, seconds = self._encoder(job)
            started = time.monotonic()
            found = encode(encoder, images, strict=True, progress=not self.console.quiet)
            spent = time.monotonic() - started
            scores, classes = None, images.classes
            if found.scores is not None and set(encoder.classes) == set(classes):
                scores = found.scores[:, [encoder.classes.index(name) for name in classes]]
            return replace(found, scores=scores), seconds, spent
        features = self._features
        started = time.monotonic()
        options = self.piece.options.get(job.method, {})
        method = create_method(job.method, job.bits, seed=self.seed, **options)
        method.fit(features[self.split.rows.train], train.labels)
        fitted = time.monotonic()
        codes = method.encode(features)
        spent = time.monotonic() - fitted
        none = np.zeros((len(codes), 0), np.float32)
        return EncodedImages(codes, none, images.labels), fitted - started, spent

    def score(self, job: Job) -> dict[str, Any]:
        """Encode, search with binary codes alone, and score; ours with the other ways as well."""
        started = time.monotonic()
        whole, fit_seconds, encode_seconds = self.encode(job)
        euclidean = job.method == runs.OURS and job.bits == self.piece.bits[0]
        modes: list[Mode] = ["bcs", "acs", "hds", "es"] if euclidean else ["bcs"]
        found = self._search(whole, job.bits, modes)
        queries, error = whole.rows(self.split.rows.queries), None
        if queries.scores is not None:
            error = top_class_error(queries.scores, queries.labels)
        scores: dict[str, Any] = {
            **runs.mode_scores(found["bcs"]),
            "classification_error": error,
            "fit_seconds": fit_seconds,
            "encode_seconds": encode_seconds,
            "sheet": self._sheet(found["bcs"], whole.codes, job.bits),
        }
        if euclidean:
            scores["ways"] = {mode: runs.mode_scores(one) for mode, one in found.items()}
            scores["ways"]["neural codes"] = self._neural_codes(whole)
        scores["seconds"] = time.monotonic() - started
        return scores

    def printed(self, figure: str, bits: int | None) -> dict[tuple[str, int], float]:
        """The authors' figures under the run's protocol; none where images were left out."""
        if not self.split.whole:
            return {}
        return runs.printed_figures(self.piece.name, figure, bits, self.split.protocol)

    @cached_property
    def _store(self) -> runs.ResultStore:
        return runs.ResultStore(self.out / "results")

    def _kept(self, job: Job) -> dict[str, Any] | None:
        return self._store.get(job.name, self.configuration(job))

    def _given(self, job: Job) -> Path | None:
        return self.models.get(job.bits) if job.method == runs.OURS else None

    def _training(self, job: Job) -> TrainingConfig:
        options = {"bits": job.bits, "objective": runs.OBJECTIVES[job.method], "seed": self.seed}
        return runs.training_config({**self.piece.training, **options}, self.split.train)

    def _deep_configuration(self, job: Job) -> dict[str, Any]:
        """All that decides the model of a deep method, as JSON values."""
        if given := self._given(job):
            return {"model": Encoder.load(given).fingerprint}
        return {"training": asdict(self._training(job)), "training_images": len(self.split.train)}

    def _encoder(self, job: Job) -> tuple[Encoder, float]:
        """The model of a deep method, and the seconds that its training took now."""
        if given := self._given(job):
            return Encoder.load(given), 0.0
        digest = runs.short_digest(self._deep_configuration(job))
        out = self.out / "models" / f"{runs.file_name(job.method)}-{job.bits}-{digest}"
        return runs.train_once(self.split.train, self._training(job), out)

    @cached_property
    def _features(self) -> Features:
        """What the shallow methods work on: pixels, GIST, or a model's F7, (n, d) float32."""
        kind, images, size = self.features, self.split.images, self.piece.size
        if kind not in KINDS:
            if not Path(kind).exists():
                raise InvalidInputError(
                    f"features: expected {', '.join(KINDS)}, or a model's folder, got {kind!r}"
                )
            return encode(Encoder.load(kind), images, strict=True, progress=True).features
        channels = self.piece.channels
        unit = Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels)
        with ProgressBar("decoding", len(images), console=self.console) as bar:
            pixels = decode_source(images, unit, strict=True, progress=bar).pixels
        if kind == "pixels":
            return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        kept = self.out / "features" / f"gist-{digest}.npy"
        if kept.is_file():
            found: Features = np.load(kept)
            return found
        with ProgressBar("GIST", len(images), console=self.console) as bar:
            found = gist(pixels, progress=bar)
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, lambda aside: np.save(aside, found))
        return found

    def _search(
        self, whole: EncodedImages, bits: int, modes: Sequence[Mode]
    ) -> dict[str, ModeScores]:
        database, queries = (whole.rows(part) for part in self.split.rows[1:])
        return runs.search_ways(database, queries, bits, modes=modes)

    def _neural_codes(self, whole: EncodedImages) -> dict[str, Any]:
        """Euclidean search over F7 compressed by PCA."""
        train = self.split.rows.train
        dimensions = min(NEURAL_DIMENSIONS, whole.features.shape[1], len(train))
        compressed = replace(whole, features=neural_codes(whole.features, train, dimensions))
        found = self._search(compressed, 8 * whole.codes.shape[1], ["es"])
        return runs.mode_scores(found["es"]) | {"dimensions": dimensions}

    def _sheet(self, nearest: ModeScores, codes: Codes, bits: int) -> list[dict[str, Any]]:
        """A few queries, the same for every method, with their nearest images."""
        rows = self.split.rows
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
        if job.method == runs.OURS and job.bits in self.models:
            return _TRAINED_SECONDS
        return float(self.piece.seconds.get(job.method, 0.0))


def neural_codes(features: Features, train: Ids, dimensions: int) -> Features:
    """Features compressed by a PCA of the training rows, (n, dimensions), for Euclidean search.

    A. Babenko, A. Slesarev, A. Chigorin, V. Lempitsky, *Neural codes for image retrieval*, ECCV
    2014, section 3.1: features of length 1, compressed by PCA, of length 1 again.
    """
    unit = normalize(features)
    mean, directions, _, _ = principal_components(unit[train], dimensions)
    compressed: Features = normalize(((unit - mean) @ directions).astype(np.float32))
    return compressed


def spoken_time(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_PRECISION_AT = (100, 400, 1000)


def precision_table(run: Comparison, kept: Kept) -> Table:
    """Precision at k of every method at the curves' length, and the printed one."""
    bits = run.piece.bits[0]
    printed = run.printed("precision", bits)
    compared = ["printed @1000", "difference"] if printed else []
    headers = ["method", *(f"@{k}" for k in _PRECISION_AT), *compared, "mAP@1000", "over ties"]
    headers += ["training s", "encoding s"]
    rows: list[list[Cell]] = []
    for method in run.piece.methods:
        scores = kept[Job(method, bits)]["scores"]
        found, then = scores["precision"], printed.get((method, 1000))
        rows.append([method, *(found[str(k)] for k in _PRECISION_AT)])
        if printed:
            rows[-1] += [then, None if then is None else f"{found['1000'] - then:+.3f}"]
        rows[-1] += [scores["map@1000"], scores["map@1000_ties"]]
        rows[-1] += [f"{scores[part]:.1f}" for part in ("fit_seconds", "encode_seconds")]
    return Table(headers, rows, digits=3)


def map_table(run: Comparison, kept: Kept) -> Table:
    """Mean average precision at 1,000 by code length, measured and printed."""
    lengths = sorted(run.piece.bits)
    printed = [run.printed("map", bits) for bits in lengths]
    headers = ["method", *(text for bits in lengths for text in (f"{bits} bits", "printed"))]
    rows: list[list[Cell]] = []
    for method in run.piece.methods:
        rows.append([method])
        for bits, then in zip(lengths, printed, strict=True):
            measured = kept[Job(method, bits)]["scores"]["map@1000"]
            rows[-1] += [measured, then.get((method, 1000))]
    return Table(headers, rows, digits=3)


def others_table(run: Comparison, kept: Kept) -> Table:
    """Figures of the whole ranking that others printed under the run's protocol, next to ours."""
    rows: list[list[Cell]] = [
        [one.method, int(one.bits), one.network or "–", one.value, one.source]
        for one in (runs.all_printed() if run.split.whole else ())
        if (one.piece, one.protocol, one.cutoff) == (run.piece.name, run.split.protocol, "all")
    ]
    for job, result in kept.items() if rows else ():
        if job.method in runs.OBJECTIVES:
            rows.append([job.method, job.bits, "", result["scores"].get("map@all"), "this run"])
    return Table(["method", "bits", "network", "mAP", "source"], rows, digits=3)


def error_table(run: Comparison, kept: Kept) -> Table:
    """Error in per cent on the queries where methods classify; then printed ones of others."""
    rows: list[list[Cell]] = []
    for job, result in sorted(kept.items(), key=lambda item: (item[0].method, item[0].bits)):
        error = result["scores"]["classification_error"]
        if error is None or job.bits not in run.piece.error_bits:
            continue
        then = run.printed("classification_error", job.bits).get((job.method, 0))
        rows.append([job.method, job.bits, 100 * error, None if then is None else 100 * then])
    if rows:
        others = run.printed("classification_error", None).items()
        rows += [[name, None, None, 100 * then] for (name, _), then in others]
    return Table(["method", "bits", "error %", "printed %"], rows, digits=2)


def write_comparison(run: Comparison, kept: Kept, command: str) -> Path:
    """Write report.html and report.md with curves and sheets; returns the page."""
    piece, bits = run.piece, run.piece.bits[0]
    newest = max(kept.values(), key=lambda result: str(result["finished"]))
    page = Page(run.out, f"{piece.title}: hashing methods compared", run.split.describe())
    worked_on = {"gist": "GIST (512)", "pixels": "raw pixels"}.get(run.features)
    page.paragraph(
        f"Images: {run.split.images.spec}. Shallow methods work on "
        f"{worked_on or f'F7 of {run.features}'}. Seed {run.seed}. {runs.made_on(newest)}"
    )
    page.heading(f"Precision at k with {bits} bits")
    curves = _curves(run, kept)
    page.figure(
        plot_curves(curves, ends=True, xlabel="k", ylabel="precision at k"),
        "precision_at_k",
        "Precision at k of every method",
        "Search with binary codes alone (BCS); equal distances are in the order of ids."
        + (" Dotted: as the authors printed it." if len(curves) > len(piece.methods) else ""),
    )
    page.table(
        precision_table(run, kept),
        "Precision at k and mean average precision (over the relevant ones among the first 1,000; "
        "'over ties': its expectation over all orders of equal distances), binary codes alone. "
        "Training 0.0: a trained model was given.",
    )
    if len(piece.bits) > 1:
        page.heading("Mean average precision by code length")
        page.table(map_table(run, kept), "mAP@1000, binary codes alone.")
    others = others_table(run, kept)
    if others.rows:
        page.heading("Printed by others")
        page.table(others, "Mean average precision of the whole ranking, the same protocol.")
    errors = error_table(run, kept)
    if errors.rows:
        page.heading("Classification error")
        page.table(
            errors,
            "On the queries. The shallow methods do not classify. Rows without bits: classifiers "
            "without a latent layer, of that time (Lin, Chen and Yan, Network in network, 2014).",
        )
    if runs.OURS in piece.methods:
        page.heading("Ways to search with our network")
        page.table(
            runs.ways_table(kept[Job(runs.OURS, bits)]["scores"]["ways"]),
            f"{bits} bits. Time: median of single queries for ten results, without encoding.",
        )
    page.heading("Nearest pictures")
    for number, sheet in enumerate(_sheets(run, kept), 1):
        page.picture(sheet, f"query_{number}", f"Query {number}, its five nearest by each method")
    page.paragraph(
        "Queries spread over the classes, the same for every method. Blue frame and tick: the "
        "query's class; orange frame and cross: another. Under a picture: its class and how many "
        f"bits differ. The squares are the bits of {piece.methods[-1]}'s code of the query, filled "
        "where 1."
    )
    page.heading("Command")
    page.commands(command)
    return page.write()


def _curves(run: Comparison, kept: Kept) -> dict[str, Curve]:
    """Precision from k = 100 on of each method, measured and printed."""
    bits, curves = run.piece.bits[0], {}
    printed = run.printed("precision", bits)
    for method in run.piece.methods:
        precision = kept[Job(method, bits)]["scores"]["precision"]
        measured = {k: value for k, value in precision.items() if int(k) >= _PRECISION_AT[0]}
        curves[method] = Curve.through(measured)
        points = sorted((k, value) for (name, k), value in printed.items() if name == method)
        if points:
            ks, values = zip(*points, strict=True)
            curves[f"{method}, printed"] = Curve(ks, values, "dotted", like=method)
    return curves


def _sheets(run: Comparison, kept: Kept) -> list[Image.Image]:
    """One picture per query: its five nearest by each method, and the bits of our code."""
    bits, methods = run.piece.bits[0], run.piece.methods
    found = {method: kept[Job(method, bits)]["scores"]["sheet"] for method in methods}
    sheets = []
    for position, own in enumerate(found[methods[-1]]):
        nearest = {}
        for method, entries in found.items():
            rows, distances = entries[position]["nearest"], entries[position]["distances"]
            nearest[method] = list(zip(rows, (f"{d} bits" for d in distances), strict=True))
        row = (own["query"], own["code"], nearest)
        sheets.append(runs.draw_sheet(run.split.images, [row], own["bits"], 72))
    return sheets


PROTOCOLS = {
    "paper": "all training images train and are searched, all test images are queries",
    "54000": "of all images 1,000 are queries, 5,000 train and the other 54,000 are searched",
    "59000": "of all images 1,000 are queries, 59,000 are searched, and 5,000 of those train",
}
_QUERIES, _TRAINING = 1000, 5000


class Rows(NamedTuple):
    """Rows of a collection."""

    train: Ids
    database: Ids
    queries: Ids


@dataclass(frozen=True)
class PaperSplit:
    """Training images, database and queries of a comparison: rows of ``images``.

    ``whole`` says whether no image was left out for speed.
    """

    images: Source
    rows: Rows
    protocol: str
    whole: bool

    @property
    def train(self) -> Source:
        """The training images: all that a supervised method may see the labels of."""
        return self.images.subset(self.rows.train)

    def describe(self) -> str:
        """One sentence on protocol and numbers."""
        train, database, queries = (len(part) for part in self.rows)
        numbers = f"{train:,} training images, a database of {database:,} and {queries:,} queries"
        meaning = PROTOCOLS[self.protocol]
        if self.whole:
            return f"Protocol {self.protocol} ({meaning}): {numbers}."
        most = int(np.bincount(self.images.labels[self.rows.database]).max())
        return (
            f"A subset, evenly over the classes: {numbers}. Protocol {self.protocol} ({meaning}). "
            f"A query finds at most {most:,} of its class, so no precision at k exceeds {most:,}/k."
        )


def make_split(
    train: Source, test: Source, protocol: str, amounts: runs.Amounts, seed: int
) -> PaperSplit:
    """Choose the images of each kind."""
    if protocol not in PROTOCOLS:
        raise InvalidInputError(
            f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    joined = _join(train, test)
    rng = np.random.default_rng(seed)
    if protocol == "paper":
        rows = _paper_rows(joined.labels, len(train), amounts, rng)
    else:
        rows = _drawn_rows(joined.labels, protocol == "59000", amounts, rng)
    used = np.unique(np.concatenate(rows))
    local = Rows(*(np.searchsorted(used, part) for part in rows))
    return PaperSplit(joined.subset(used), local, protocol, amounts == runs.Amounts())


def _join(train: Source, test: Source) -> Source:
    for part in (train, test):
        if part.label_matrix is not None or len(part.labelled) < len(part):
            raise SourceError(f"{part.spec}: expected one label for every image")
    if set(train.classes) != set(test.classes):
        raise SourceError(
            f"{train.spec} and {test.spec}: expected the same classes, got "
            f"{len(train.classes)} and {len(test.classes)} that differ"
        )
    other = renumbered(test, train.classes)
    return replace(
        train,
        spec=f"{train.spec} and {test.spec}",
        store=JoinedImages([train.store, test.store]),
        rows=np.concatenate([train.rows, len(train.store) + test.rows]),
        labels=np.concatenate([train.labels, other]).astype(np.int64),
        notes=(*train.notes, *test.notes),
    )


def _paper_rows(
    labels: NDArray[np.int64], n_train: int, amounts: runs.Amounts, rng: np.random.Generator
) -> Rows:
    def at_most(rows: Ids, count: int | None) -> Ids:
        return rows if count is None else _draw(rows, labels, min(count, len(rows)), rng)

    database = at_most(np.arange(n_train), amounts.database)
    train = at_most(database, amounts.training)
    return Rows(train, database, at_most(np.arange(n_train, len(labels)), amounts.queries))


def _drawn_rows(
    labels: NDArray[np.int64],
    train_is_searched: bool,
    amounts: runs.Amounts,
    rng: np.random.Generator,
) -> Rows:
    rest = np.arange(len(labels))
    queries = _draw(rest, labels, amounts.queries or _QUERIES, rng)
    rest = np.setdiff1d(rest, queries)
    train = _draw(rest, labels, amounts.training or _TRAINING, rng)
    rest = np.setdiff1d(rest, train)
    if amounts.database is not None:
        wanted = amounts.database - (len(train) if train_is_searched else 0)
        rest = _draw(rest, labels, max(wanted, len(np.unique(labels))), rng)
    database = np.union1d(rest, train) if train_is_searched else rest
    return Rows(train, database, queries)


def _draw(rows: Ids, labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> Ids:
    """``count`` of the rows, evenly over the classes, in their order."""
    if count == len(rows):
        return rows
    kinds = np.unique(labels[rows])
    shares = np.full(len(kinds), count // len(kinds))
    shares[: count % len(kinds)] += 1
    drawn = []
    for kind, share in zip(kinds, shares, strict=True):
        held = rows[labels[rows] == kind]
        if len(held) < share:
            raise InvalidInputError(
                f"expected at least {share} images of each class for {count} images, got "
                f"{len(held)} of one"
            )
        drawn.append(rng.choice(held, int(share), replace=False))
    return np.sort(np.concatenate(drawn))
