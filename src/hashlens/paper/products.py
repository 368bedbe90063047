"""``hashlens reproduce products``: search in a collection, grown or not, and a page about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console

from hashlens.data.image import RawImage
from hashlens.data.labels import split_validation
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError
from hashlens.evaluation.scoring import ModeScores, top_class_error
from hashlens.models.backbones import create_backbone
from hashlens.models.encoder import Encoder
from hashlens.paper import runs
from hashlens.report.page import Page
from hashlens.report.plot import Curve, plot_curves
from hashlens.report.progress import ProgressBar
from hashlens.training.choice import drawn
from hashlens.types import EncodedBatch, EncodedImages, Features, Ids
from hashlens.workflows.score import encode


@dataclass(frozen=True)
class GrownImages:
    """A source's images, and after them changed copies of them, made when they are read."""

    base: Source
    size: int
    seed: int

    def __len__(self) -> int:
        return self.size

    def uri(self, row: int) -> str:
        """As the base names it, with ``#copy=ROW`` after it for a copy."""
        name = self.base.uris[row % len(self.base)]
        return name if row < len(self.base) else f"{name}#copy={row}"

    def read(self, row: int) -> RawImage:
        """As the base reads it, or the pixels of a copy."""
        origin = row % len(self.base)
        if row < len(self.base):
            return self.base.store.read(int(self.base.rows[origin]))
        image = self.base.load(origin)
        return np.asarray(changed(image, np.random.default_rng((self.seed, row))))


def grow(source: Source, size: int, seed: int) -> Source:
    """A source of ``size`` images: its own, then changed copies of them, in turn."""
    if size < len(source):
        raise InvalidInputError(
            f"scale: expected at least the {len(source):,} images, got {size:,}"
        )
    chosen = np.arange(size)
    return replace(
        source,
        spec=f"{source.spec}, grown to {size:,} with seed {seed}",
        store=GrownImages(source, size, seed),
        rows=chosen,
        labels=source.labels[chosen % len(source)],
    )


def changed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy: a crop of 70 to 100 % of each side, mirrored or not, of other light and colour."""
    width, height = image.size
    inner = [max(1, round(side * rng.uniform(0.7, 1.0))) for side in (width, height)]
    left, top = int(rng.integers(width - inner[0] + 1)), int(rng.integers(height - inner[1] + 1))
    copy = image.crop((left, top, left + inner[0], top + inner[1]))
    copy = copy.resize((width, height), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        copy = ImageOps.mirror(copy)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        copy = change(copy).enhance(float(rng.uniform(0.7, 1.3)))
    return copy


_SHEET_QUERIES, _SHEET_NEAREST = 4, 5


@dataclass(frozen=True)
class ProductsRun:
    """One run on a collection of labelled images; the model and results are kept in ``out``.

    A given ``model`` is used instead of training one. ``weights`` is a file with a backbone's
    published weights: training starts from them, and the backbone's own F7 is searched as well,
    as is the F7 of ``without_h``, a model of the objective ``softmax``.
    The collection grows to ``scale`` images.
    """

    collection: Source
    settings: runs.Products
    out: Path
    model: Path | None = None
    weights: Path | None = None
    without_h: Path | None = None
    scale: int | None = None
    seed: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def prepared(self) -> ProductsRun:
        """The same run on labelled images alone, and on no more of them than the settings say."""
        labelled = self.collection.subset(self.collection.labelled)
        if labelled.label_matrix is not None or len(np.unique(labelled.labels)) < 2:
            raise SourceError(
                f"{labelled.spec}: expected images of at least two classes, one class each"
            )
        limit = self.settings.images
        if limit is not None and limit < len(labelled):
            rows = np.random.default_rng(self.seed).permutation(len(labelled))[:limit]
            labelled = labelled.subset(np.sort(rows))
        return replace(self, collection=labelled)

    @property
    def queries(self) -> Ids:
        """Rows of the collection that are queries, ascending."""
        return drawn(np.arange(len(self.collection)), self.settings.queries, self.seed)

    def run(self) -> dict[str, Any]:
        """Train, encode, search and score; returns what is kept, from before if it was run."""
        store, encoder = runs.ResultStore(self.out / "results"), self._encoder()
        configuration = {
            "images": self.collection.spec,
            "collection": len(self.collection),
            "scale": self.scale,
            "queries": len(self.queries),
            "seed": self.seed,
            "model": encoder.fingerprint,
            "weights": str(self.weights) if self.weights else None,
        }
        if self.without_h is not None:
            configuration["without_h"] = Encoder.load(self.without_h).fingerprint
        kept = store.get("products", configuration)
        return kept or store.put("products", configuration, self._scores(encoder))

    def describe(self) -> str:
        """One sentence on collection and queries."""
        size = f"{len(self.collection):,} images of {len(self.collection.classes)} classes"
        if self.scale is not None:
            size += f", grown to {self.scale:,} by changed copies (crop, mirror, light, colour)"
        return (
            f"{self.collection.spec}: {size}; {len(self.queries):,} of them, drawn at random, are "
            "queries, each left out of its own results."
        )

    def split(self) -> tuple[Ids, Ids]:
        """Rows that train, and rows held out for the accuracy."""
        return split_validation(self.collection.labels, self.settings.held_out, self.seed)

    def _encoder(self) -> Encoder:
        if self.model is not None:
            return Encoder.load(self.model)
        weights = None if self.weights is None else str(self.weights)
        given = {"bits": self.settings.bits, "seed": self.seed, "weights": weights}
        images, options = self.collection.subset(self.split()[0]), self.settings.training
        return runs.train_named(images, {**options, **given}, self.out, len(images))[0]

    def _scores(self, encoder: Encoder) -> dict[str, Any]:
        grown = self.collection
        if self.scale is not None:
            grown = grow(self.collection, self.scale, self.seed)
        found = self._encode(encoder, grown)
        held_out = self.split()[1]
        accuracy = None
        if found.scores is not None and encoder.classes == self.collection.classes:
            error = top_class_error(found.scores[held_out], grown.labels[held_out])
            accuracy = None if error is None else 1 - error
        ways = self._search(found, encoder.bits)
        for name, features in self._other_features(grown).items():
            bare = EncodedImages(found.codes, features, grown.labels)
            ways = {name: self._search(bare, encoder.bits, modes=["es"])["es"], **ways}
        every = max(1, len(self.queries) // _SHEET_QUERIES)
        shown = slice(None, every * _SHEET_QUERIES, every)
        queries = self.queries[shown].tolist()
        nearest = {name: one.nearest[shown, :_SHEET_NEAREST].tolist() for name, one in ways.items()}
        codes = [found.codes[row].tobytes().hex() for row in queries]
        return {
            "bits": encoder.bits,
            "accuracy": accuracy,
            "held_out": len(held_out),
            "trained_here": self.model is None,
            "ways": {name: runs.mode_scores(one) for name, one in ways.items()},
            "nearest": {**nearest, "queries": queries, "codes": codes},
        }

    def _encode(self, encoder: Encoder, grown: Source) -> EncodedImages:
        """Encode the collection, and what was grown; copies exist only while they are read.

        Class scores are those of the collection alone.
        """
        found = encode(encoder, self.collection, strict=True, progress=True)
        rows = range(len(self.collection), len(grown))
        if not rows:
            return found
        parts: list[EncodedBatch | EncodedImages] = [found]
        with ProgressBar("encode copies", len(rows), unit="images", console=self.console) as bar:
            for batch in encoder.encode_batches(map(grown.load, rows), strict=True):
                parts.append(batch)
                bar(len(batch.codes))
        return replace(runs.joined(parts, grown.labels), scores=found.scores)

    def _search(self, whole: EncodedImages, bits: int, **options: Any) -> dict[str, ModeScores]:
        rows, options = self.queries, {"progress": True, **options}
        return runs.search_ways(whole, whole.rows(rows), bits, exclude=rows, **options)

    def _other_features(self, grown: Source) -> dict[str, Features]:
        """F7 of other networks: the published backbone, and one that was trained without H."""
        found = {}
        if self.weights is not None:
            values = {"recipe": "finetune", "weights": str(self.weights)}
            if "backbone" in self.settings.training:
                values["backbone"] = self.settings.training["backbone"]
            config = runs.training_config(values, self.collection)
            assert config.backbone is not None  # resolved
            backbone = create_backbone(config.backbone, size=config.size, weights=self.weights)
            kept = self.out / f"plain-{len(grown)}.safetensors"
            found[runs.PLAIN] = runs.plain_features(grown, backbone, kept, self.console)
        if self.without_h is not None:
            found[runs.WITHOUT_H] = self._encode(Encoder.load(self.without_h), grown).features
        return found


def summary(scores: dict[str, Any]) -> str:
    """Code length and accuracy, with what the number means."""
    text = f"{scores['bits']}-bit codes. "
    if scores["accuracy"] is None:
        return text + "No accuracy: the model has other classes."
    text += f"Classification accuracy {100 * scores['accuracy']:.2f} % on {scores['held_out']:,} "
    text += (
        "images that were held out of training."
        if scores["trained_here"]
        else "images; whether the given model saw them in training is not known here."
    )
    then = runs.printed_figures("products", "accuracy", scores["bits"]).get((runs.OURS, 0))
    if then is not None:
        text += f" (The paper, on its own collection, never released: {100 * then:.2f} %.)"
    return text


def write_products(run: ProductsRun, kept: dict[str, Any], command: str) -> Path:
    """Write report.html and report.md with curves and pictures; returns the page."""
    scores = kept["scores"]
    page = Page(run.out, "Search in a collection", run.describe())
    page.paragraph(summary(scores))
    if scores["trained_here"]:
        page.paragraph(
            "As in the paper, the queries come from the collection that the network was trained "
            "on, so precision here is higher than for new pictures."
        )
    if run.scale is not None:
        page.paragraph(
            "Changed copies of a query's own picture are among the results and count as right: "
            "read the times at this size, and the precision at the collection's own."
        )
    page.heading("Scores and time")
    page.table(
        runs.ways_table(scores["ways"]),
        "Time: median of single queries for ten results, without encoding. " + runs.made_on(kept),
    )
    ways = scores["ways"].items()
    curves = {runs.WAYS[key]: Curve.through(way["precision"]) for key, way in ways}
    figure = plot_curves(curves, xlabel="k", ylabel="precision at k")
    page.figure(figure, "precision_at_k", "Precision at k of each way to search")
    page.heading("Five nearest pictures")
    page.picture(
        _sheet(run, scores),
        "sheet",
        "Queries with their five nearest pictures by each way to search",
        "Blue frame and tick: the query's class; orange frame and cross: another. The squares are "
        "the bits of the query's code, filled where 1.",
    )
    page.heading("Command")
    page.commands(command)
    return page.write()


def _sheet(run: ProductsRun, scores: dict[str, Any]) -> Image.Image:
    images = run.collection if run.scale is None else grow(run.collection, run.scale, run.seed)
    nearest, queries = scores["nearest"], []
    shown = {runs.WAYS[key]: nearest[key] for key in runs.WAYS if key in nearest}
    for position, query in enumerate(nearest["queries"]):
        rows = {
            name: [(row, "") for row in found[position] if row >= 0]
            for name, found in shown.items()
        }
        queries.append((query, nearest["codes"][position], rows))
    return runs.draw_sheet(images, queries, scores["bits"], 96)
