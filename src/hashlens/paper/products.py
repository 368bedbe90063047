"""The experiment on a collection as a page: scores, times, pictures side by side."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console

from hashlens.data.image import decode
from hashlens.data.labels import split_validation
from hashlens.data.source import ImageStore, Source
from hashlens.data.uris import RawImage
from hashlens.errors import InvalidInputError, SourceError
from hashlens.evaluation.results import ModeScores
from hashlens.evaluation.scoring import evaluate, top_class_error
from hashlens.files import replace_file
from hashlens.index.ranking import ArraySearcher
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.checkpoint import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.paper.published import printed_figure
from hashlens.paper.run import Products, ResultStore
from hashlens.report.page import Report
from hashlens.report.plot import Curve, plot_curves, save_figure
from hashlens.report.progress import ProgressBar
from hashlens.report.sheet import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.report.table import Cell, Table
from hashlens.types import MODES, EncodedBatch, EncodedImages, Features, Ids
from hashlens.workflows.score import encode


@dataclass(frozen=True)
class GrownImages:
    """A store's images, and after them changed copies of them, made when they are read."""

    base: ImageStore
    size: int
    seed: int

    def __len__(self) -> int:
        return self.size

    def uri(self, row: int) -> str:
        """As the base names it, with ``#copy=ROW`` after it for a copy."""
        name = self.base.uri(row % len(self.base))
        return name if row < len(self.base) else f"{name}#copy={row}"

    def read(self, row: int) -> RawImage:
        """As the base reads it, or the pixels of a copy."""
        origin = row % len(self.base)
        raw = self.base.read(origin)
        if row < len(self.base):
            return raw
        image = decode(raw, self.base.uri(origin))
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
        store=GrownImages(_Rows(source), size, seed),
        rows=chosen,
        labels=source.labels[chosen % len(source)],
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of a source as a store of their own."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def uri(self, row: int) -> str:
        return self.source.store.uri(int(self.source.rows[row]))

    def read(self, row: int) -> RawImage:
        return self.source.store.read(int(self.source.rows[row]))


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


KS = (1, 5, 10, 50, *range(100, 1001, 100))
PLAIN = "plain"
_SHEET_QUERIES, _SHEET_NEAREST = 4, 5


@dataclass(frozen=True)
class ProductsRun:
    """One run on a collection.

    Attributes
    ----------
    collection : Source
        Labelled images.
    settings : Products
        Code length, queries, training.
    out : Path
        Where the model and results are kept.
    model : Path or None
        A trained model to use instead of training one.
    weights : Path or None
        File with a backbone's published weights: training starts from it, and its plain F7 is
        searched as well.
    scale : int or None
        Images to grow the collection to.
    seed : int
        Of everything.
    console : Console
        Where progress is shown.
    """

    collection: Source
    settings: Products
    out: Path
    model: Path | None = None
    weights: Path | None = None
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
        """Rows of the collection that ask, ascending."""
        count = min(self.settings.queries, len(self.collection))
        drawn = np.random.default_rng(self.seed).choice(len(self.collection), count, replace=False)
        return np.sort(drawn).astype(np.int64)

    def run(self) -> dict[str, Any]:
        """Train, encode, search and score; returns what is kept, from before if it was run."""
        store, encoder = ResultStore(self.out / "results"), self._encoder()
        configuration = {
            "images": self.collection.spec,
            "collection": len(self.collection),
            "scale": self.scale,
            "queries": len(self.queries),
            "seed": self.seed,
            "model": encoder.fingerprint,
            "weights": str(self.weights) if self.weights else None,
        }
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
        from hashlens.training.fit import fit
        from hashlens.training.recipes import configure
        from hashlens.training.state import RUN

        values = dict(self.settings.training)
        recipe = str(values.pop("recipe", "auto"))
        values |= {"bits": self.settings.bits, "seed": self.seed}
        if self.weights is not None:
            values["weights"] = str(self.weights)
        images = self.collection.subset(self.split()[0])
        config, _ = configure(recipe, values, images)
        text = json.dumps([config.to_toml(), self.collection.spec, len(images)])
        out = self.out / f"model-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        if (out / RUN).is_dir() or not (out / CONFIG_NAME).is_file():
            fit(images, config, out, resume=(out / RUN).is_dir())
        return Encoder.load(out)

    def _scores(self, encoder: Encoder) -> dict[str, Any]:
        grown = self.collection
        if self.scale is not None:
            grown = grow(self.collection, self.scale, self.seed)
        found = encode(encoder, self.collection, strict=True, progress=True)
        held_out = self.split()[1]
        accuracy = None
        if found.scores is not None and encoder.classes == self.collection.classes:
            error = top_class_error(found.scores[held_out], grown.labels[held_out])
            accuracy = None if error is None else 1 - error
        copies = self._encode_copies(encoder, grown)
        codes = np.concatenate([found.codes, *(copy.codes for copy in copies)])
        features = np.concatenate([found.features, *(copy.features for copy in copies)])
        whole = EncodedImages(codes, features, grown.labels)
        ways, sheets = self._search(whole, encoder.bits)
        plain = self._plain_features(grown)
        if plain is not None:
            bare = EncodedImages(codes, plain, grown.labels)
            more, other = self._search(bare, encoder.bits, plain=True)
            ways, sheets = {**more, **ways}, {**other, **sheets}
        return {
            "bits": encoder.bits,
            "accuracy": accuracy,
            "held_out": len(held_out),
            "trained_here": self.model is None,
            "ways": ways,
            "nearest": sheets,
        }

    def _encode_copies(self, encoder: Encoder, grown: Source) -> list[EncodedBatch]:
        """Encode what was grown; copies exist only while they are read."""
        rows = range(len(self.collection), len(grown))
        if not len(rows):
            return []
        found = []
        with ProgressBar("encode copies", len(rows), unit="images", console=self.console) as bar:
            for batch in encoder.encode_batches(map(grown.load, rows), strict=True):
                found.append(batch)
                bar(len(batch.codes))
        return found

    def _search(
        self, whole: EncodedImages, bits: int, *, plain: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores of each way, and the nearest images of a few queries."""
        rows = self.queries
        searcher = ArraySearcher(whole.codes, whole.features)
        found = evaluate(
            searcher,
            whole,
            whole.rows(rows),
            bits=bits,
            modes=("es",) if plain else MODES,
            exclude=rows,
            progress=True,
        )
        names = {mode: PLAIN if plain else mode for mode in found.modes}
        shown = slice(None, None, max(1, len(rows) // _SHEET_QUERIES))
        scores = {names[mode]: _scores(value) for mode, value in found.modes.items()}
        nearest = {
            names[mode]: value.nearest[shown][:_SHEET_QUERIES, :_SHEET_NEAREST].tolist()
            for mode, value in found.modes.items()
        }
        queries = rows[shown][:_SHEET_QUERIES]
        codes = [whole.codes[row].tobytes().hex() for row in queries]
        return scores, nearest | {"queries": queries.tolist(), "codes": codes}

    def _plain_features(self, grown: Source) -> Features | None:
        """F7 of the published backbone, not trained on the collection and without H."""
        backbone = self._published()
        if backbone is None:
            return None
        from hashlens.training.data import feature_inputs

        inputs = feature_inputs(
            grown,
            backbone.preprocessing,
            backbone.module,
            self.out / f"plain-{len(grown)}.safetensors",
            strict=True,
            console=self.console,
        )
        rows = np.arange(len(grown))
        features: Features = inputs.pixels.gather(rows)[0].numpy().astype(np.float32)
        return features

    def _published(self) -> Backbone | None:
        if self.weights is None:
            return None
        from hashlens.training.recipes import configure

        values = {"weights": str(self.weights)}
        if "backbone" in self.settings.training:
            values["backbone"] = self.settings.training["backbone"]
        config, _ = configure("finetune", values, self.collection)
        assert config.backbone is not None  # resolved
        return create_backbone(config.backbone, size=config.size, weights=self.weights)


def _scores(scores: ModeScores) -> dict[str, Any]:
    return {
        "precision": {str(k): float(scores.precision[k - 1]) for k in KS},
        "map@1000": scores.mean_average_precision,
        "ms_per_query": scores.ms_per_query,
    }


NAMES = {
    PLAIN: "plain backbone F7",
    "es": "ES (F7)",
    "bcs": "BCS (codes)",
    "hds": "HDS (codes, then F7)",
}


def ways_table(scores: dict[str, Any]) -> Table:
    """Precision at k and time a query of each way, and how much faster than ES it is."""
    ways = scores["ways"]
    slowest = ways["es"]["ms_per_query"]
    rows: list[list[Cell]] = [
        [
            NAMES[key],
            *(ways[key]["precision"][str(k)] for k in (1, 10, 100, 1000)),
            f"{ways[key]['ms_per_query']:.3f}",
            f"{slowest / ways[key]['ms_per_query']:.1f}",
        ]
        for key in NAMES
        if key in ways
    ]
    headers = [
        "",
        *(f"precision@{k}" for k in (1, 10, 100, 1000)),
        "ms per query",
        "ES time / time",
    ]
    return Table(headers, rows, digits=3)


def summary(run: ProductsRun, scores: dict[str, Any]) -> str:
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
    then = printed_figure("products", "accuracy", scores["bits"])
    if then is not None:
        text += f" (The paper, on its own collection, never released: {100 * then:.2f} %.)"
    return text


def write_products(run: ProductsRun, kept: dict[str, Any], command: str) -> Path:
    """Write report.html and report.md with curves and pictures; returns the page."""
    scores = kept["scores"]
    run.out.mkdir(parents=True, exist_ok=True)
    report = Report("Search in a collection", run.describe())
    report.paragraph(summary(run, scores))
    if scores["trained_here"]:
        report.paragraph(
            "As in the paper the queries come from the collection that the network was trained "
            "on, so that precision here is higher than for new pictures."
        )
    if run.scale is not None:
        report.paragraph(
            "Changed copies of a query's own picture are among the results and count as right: "
            "read the times at this size, and the precision at the collection's own."
        )
    report.heading("Scores and time")
    report.table(
        ways_table(scores),
        f"Time: median of single queries for ten results, encoding not included. "
        f"{kept['hardware']}; "
        + ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        + ".",
    )
    curves = {
        NAMES[key]: Curve([int(k) for k in way["precision"]], list(way["precision"].values()))
        for key, way in scores["ways"].items()
    }
    figure = save_figure(plot_curves(curves), run.out, "precision_at_k")
    report.picture(figure, "Precision at k of each way to search")
    report.heading("Five nearest pictures")
    sheet = _sheet(run, scores)
    replace_file(run.out / "sheet.png", partial(sheet.save, optimize=True))
    report.picture(
        sheet,
        "Queries with their five nearest pictures by each way",
        "Blue frame and tick: the query's class; orange frame and cross: another. The squares are "
        "the bits of the query's code, filled where 1.",
        file="sheet.png",
    )
    report.heading("Command")
    report.commands(command)
    return report.write(run.out)


def _sheet(run: ProductsRun, scores: dict[str, Any]) -> Image.Image:

    images = run.collection if run.scale is None else grow(run.collection, run.scale, run.seed)
    nearest, shown = scores["nearest"], []
    places: dict[str, int] = {}

    def neighbour(row: int, query: int) -> Neighbour:
        uri = images.store.uri(int(images.rows[row]))
        places[uri] = row
        return Neighbour(
            uri, images.label_name(row) or "", "", bool(images.labels[row] == images.labels[query])
        )

    for position, query in enumerate(nearest["queries"]):
        rows = {
            NAMES[key]: [neighbour(row, query) for row in nearest[key][position] if row >= 0]
            for key in NAMES
            if key in nearest
        }
        own = neighbour(query, query)
        code = np.frombuffer(bytes.fromhex(nearest["codes"][position]), np.uint8)[None]
        shown.append(SheetQuery(own.uri, own.label, rows, code_bits(code, 0, scores["bits"])))
    return picture_sheet(shown, lambda uri: images.load(places[uri]), tile=96)
