"""``hashlens reproduce field``: objectives and shallow methods on one network, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.preprocessing import normalize

from hashlens.baselines import create_method, method_names
from hashlens.data.labels import split_validation
from hashlens.data.source import Source
from hashlens.errors import HashlensError, InvalidInputError, SourceError
from hashlens.hasher import Hasher
from hashlens.models.backbones import create_backbone
from hashlens.models.encoder import Encoder
from hashlens.paper import runs
from hashlens.report.page import Page, Table
from hashlens.report.plot import Curve, plot_curves
from hashlens.report.progress import ProgressBar
from hashlens.training.objectives import objectives
from hashlens.types import EncodedImages, Features, Ids, Mode
from hashlens.workflows.score import encode, renumbered

FEATURES = "features"
"""The features themselves, compared by the cosine: what codes are measured against."""

SCORES = ("map@1000", "map@all", "precision_within_radius_2")
_HELD_OUT = 0.1


class Cell(NamedTuple):
    """One method at one code length, with one seed."""

    seed: int
    bits: int
    method: str


@dataclass(frozen=True)
class FieldRun:
    """What is compared; finished cells are kept in ``out`` and not measured again.

    Methods learn from nine tenths of the database, or of ``training`` images of it; the last tenth
    searches the others for the score "validation". ``taught``, where given, has the label that
    methods learn of each image of the database, in place of the one that is searched for. With
    ``unseen``, so many classes, drawn by the seed, take no part in learning, and only their images
    are queries. With ``tune`` the network learns too: each objective's own; shallow methods and
    ``features`` take F7 of the network that learned by ``softmax``.
    """

    database: Source
    queries: Source
    backbone: str
    size: int | None
    weights: Path | None
    out: Path
    methods: Sequence[str] = ()
    bits: Sequence[int] = (16, 32, 48, 64)
    seeds: int = 3
    training: int | None = None
    taught: NDArray[np.int64] | None = None
    unseen: int = 0
    tune: bool = False
    epochs: int | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def cells(self) -> list[Cell]:
        """In the order in which they are measured: every method once, before other seeds."""
        known = [*objectives(), *method_names(), FEATURES]
        if unknown := [name for name in self.methods if name not in known]:
            raise InvalidInputError(
                f"methods: expected some of {', '.join(known)}, got {unknown[0]!r}"
            )
        names = self.methods or known
        return [Cell(s, b, name) for s in range(self.seeds) for b in self.bits for name in names]

    def run(self) -> dict[Cell, dict[str, Any]]:
        """Measure what is missing; a cell that fails says why."""
        store, cells = runs.ResultStore(self.out / "results"), self.cells()
        kept = {cell: store.get(cell.method, self._configuration(cell)) for cell in cells}
        found = {cell: one for cell, one in kept.items() if one is not None}
        if len(found) < len(cells):
            if not self.tune:
                _ = self._vectors  # a wrong backbone stops the run, and is no cell's error
            with ProgressBar("cells", len(cells), done=len(found), console=self.console) as bar:
                for cell in cells:
                    if cell not in found:
                        configuration = self._configuration(cell)
                        found[cell] = store.put(cell.method, configuration, self._measure(cell))
                        bar(1)
        return {cell: found[cell] for cell in cells if cell in found}

    def describe(self) -> str:
        """What is compared, in words."""
        text = (
            f"{len(self.database):,} images of {self.database.spec} are searched, "
            f"{len(self.queries):,} of {self.queries.spec} are queries; network {self.backbone}, "
            f"{'fine-tuned by each objective' if self.tune else 'frozen'}"
        )
        if self.training:
            text += f"; methods learn from {self.training:,} images at most"
        if self.taught is not None:
            text += "; methods learn other labels than those that are searched for"
        if self.unseen:
            text += f"; {self.unseen} classes are not learned, and only these are queries"
        return text + "."

    def _configuration(self, cell: Cell) -> dict[str, Any]:
        taught = None if self.taught is None else runs.short_digest(self.taught.tolist())
        weights = None if self.weights is None else self.weights.name
        return {
            **cell._asdict(),
            "sources": [self.database.spec, self.queries.spec],
            "images": [len(self.database), len(self.queries)],
            "network": [self.backbone, self.size, weights, self.tune, self.epochs],
            "learning": [self.training, taught, self.unseen],
        }

    @cached_property
    def _vectors(self) -> list[Features]:
        """Features of database and queries, at unit length."""
        base = create_backbone(  # a frozen network that never learned says nothing of a method
            self.backbone, size=self.size, weights=self.weights, pretrained=self.weights is None
        )
        sides = []
        for name, source in (("database", self.database), ("queries", self.queries)):
            if source.label_matrix is not None or len(source.labelled) < len(source):
                raise SourceError(f"{source.spec}: expected one label for every image")
            kept = self.out / f"features-{name}.safetensors"
            values = runs.plain_features(source, base, kept, self.console)
            sides.append(normalize(values))
        return sides

    @cached_property
    def _labels(self) -> list[Ids]:
        """Labels of database and queries, both as the database numbers them."""
        return [renumbered(one, self.database.classes) for one in (self.database, self.queries)]

    def _measure(self, cell: Cell) -> dict[str, Any]:
        numbers, asked = self._labels
        rows, queries = np.arange(len(numbers)), np.arange(len(asked))
        rng = np.random.default_rng(cell.seed)
        if self.unseen:
            left_out = rng.choice(np.unique(numbers), self.unseen, replace=False)
            rows, queries = rows[~np.isin(numbers, left_out)], queries[np.isin(asked, left_out)]
        rows = np.sort(rng.permutation(rows)[: self.training])
        learned, held_out = (rows[i] for i in split_validation(numbers[rows], _HELD_OUT, cell.seed))
        try:
            seconds, (database, asking) = self._encoded(cell, learned)
        except HashlensError as error:
            return {"error": str(error)}
        asking = asking.rows(queries)
        ways: list[Mode] = [] if cell.method == FEATURES else ["bcs"]
        if self.unseen or self.taught is not None or not ways:
            ways += ["es"] if asking.latent is None else ["es", "acs"]
        chosen = _scores(database.rows(learned), database.rows(held_out), cell.bits, ways[:1])
        validation = chosen[ways[0]]["map@1000"]
        found = _scores(database, asking, cell.bits, ways)
        return {"ways": found, "validation": validation, "seconds": seconds}

    def _encoded(self, cell: Cell, learned: Ids) -> tuple[float, list[EncodedImages]]:
        """Seconds of learning, and both sides as the method encodes them."""
        sides, learns = (self.database, self.queries), cell.method in objectives()
        labels = self._labels
        if self.tune:
            encoder, seconds = self._tuned(cell.method if learns else "softmax", cell, learned)
            encoded = [encode(encoder, source, strict=True, progress=True) for source in sides]
            if learns:
                return seconds, [
                    replace(one, labels=own) for one, own in zip(encoded, labels, strict=True)
                ]
            vectors = [one.features for one in encoded]
        else:
            vectors = self._vectors
        taught = labels[0] if self.taught is None else self.taught
        if cell.method == FEATURES:
            codes = [np.zeros((len(part), cell.bits // 8), np.uint8) for part in vectors]
            return 0.0, list(map(EncodedImages, codes, vectors, labels))
        method = (
            Hasher(cell.bits, method=cell.method, seed=cell.seed, epochs=self.epochs)
            if learns
            else create_method(cell.method, cell.bits, seed=cell.seed)
        )
        began = time.perf_counter()
        method.fit(vectors[0][learned], taught[learned])
        seconds = time.perf_counter() - began
        if isinstance(method, Hasher):
            batches = [list(method.encode_batches(part, strict=True)) for part in vectors]
            return seconds, list(map(runs.joined, batches, labels))
        codes = [method.encode(part) for part in vectors]
        return seconds, list(map(EncodedImages, codes, vectors, labels))

    def _tuned(self, objective: str, cell: Cell, learned: Ids) -> tuple[Encoder, float]:
        """A network that learned by an objective; a run that was interrupted is continued."""
        values = {"objective": objective, "bits": cell.bits, "seed": cell.seed,
                  "backbone": self.backbone, "size": self.size, "epochs": self.epochs,
                  "weights": None if self.weights is None else str(self.weights)}  # fmt: skip
        if self.taught is not None:
            raise InvalidInputError("fine-tuning: learns the labels of the images; leave it out")
        return runs.train_named(self.database.subset(learned), values, self.out, learned.tolist())


def _scores(
    database: EncodedImages, queries: EncodedImages, bits: int, ways: Sequence[Mode]
) -> dict[str, dict[str, float | None]]:
    found = runs.search_ways(database, queries, bits, modes=ways)
    kept = {mode: one.to_dict() for mode, one in found.items()}
    return {mode: {score: own.get(score) for score in SCORES} for mode, own in kept.items()}


_WAYS = {"bcs": "codes", "acs": "latent", "es": "features"}


def field_table(found: Mapping[Cell, Mapping[str, Any]]) -> Table:
    """Mean and standard deviation over the seeds, or why one failed; best on validation first."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for cell, kept in found.items():
        groups.setdefault((cell.bits, cell.method), []).append(kept["scores"])
    failed = {key: [x["error"] for x in own if "error" in x] for key, own in groups.items()}
    used = {way for own in groups.values() for one in own for way in one.get("ways", {})}
    ways = [way for way in _WAYS if way in used]
    columns = [(way, score) for way in ways for score in (SCORES if way == "bcs" else SCORES[:2])]
    rows = []
    chosen = {key: np.mean([x.get("validation", 0.0) for x in own]) for key, own in groups.items()}
    for bits, method in sorted(groups, key=lambda key: (key[0], -chosen[key], key[1])):
        own = groups[bits, method]
        if reasons := failed[bits, method]:
            rows.append([method, str(bits), reasons[0], *[""] * (len(columns) + 1)])
            continue
        values = [[one["ways"].get(way, {}).get(score) for one in own] for way, score in columns]
        shown = [_spread(each) for each in ([one["validation"] for one in own], *values)]
        seconds = np.median([one["seconds"] for one in own])  # a machine may stand still for one
        rows.append([method, str(bits), *shown, f"{seconds:.1f} ({len(own)})"])
    named = [f"{_WAYS[way]}, {score.replace('_', ' ')}" for way, score in columns]
    headers = ["method", "bits", "validation mAP@1000", *named, "seconds (seeds)"]
    return Table(headers, rows)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f} ± {np.std(known):.3f}" if known else "–"


def write_field(run: FieldRun, found: Mapping[Cell, Mapping[str, Any]], command: str) -> Path:
    """Write report.html, report.md and the picture; returns the page."""
    page = Page(run.out, "Methods on one network", run.describe())
    page.paragraph(f"{len(found)} of {len(run.cells())} cells are measured.")
    page.table(field_table(found), runs.made_on(next(iter(found.values()))))
    curves: dict[str, dict[int, list[float]]] = {}
    for cell, kept in found.items():
        if "bcs" in kept["scores"].get("ways", {}):
            own = curves.setdefault(cell.method, {}).setdefault(cell.bits, [])
            own.append(kept["scores"]["ways"]["bcs"]["map@1000"])
    lines = {
        name: Curve(sorted(own), [float(np.mean(own[bits])) for bits in sorted(own)])
        for name, own in curves.items()
    }
    if lines:
        figure = plot_curves(lines, ends=True, xlabel="bits", ylabel="mAP@1000 of codes")
        page.figure(figure, "map_by_bits", "Mean average precision by code length")
    page.commands(command)
    return page.write()
