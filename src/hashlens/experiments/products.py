"""The paper's experiment on product pictures, on any collection with classes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from hashlens.data.source import Source
from hashlens.data.splits import split_validation
from hashlens.errors import SourceError
from hashlens.evaluation.results import EncodedSet, ModeScores
from hashlens.evaluation.runner import evaluate, top_class_error
from hashlens.experiments.growth import grow
from hashlens.experiments.pieces import Products
from hashlens.experiments.results import ResultStore
from hashlens.experiments.score_model import encode
from hashlens.index.arrays import ArraySearcher
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.checkpoint import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.protocols import MODES, EncodedBatch, Features, Ids

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
        """The same run on labelled images alone, and on no more of them than the settings say.

        Raises
        ------
        SourceError
            If a class has a single image or there are fewer than two classes.
        """
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
        from hashlens.training.fit import train
        from hashlens.training.recipes import configure
        from hashlens.training.run import RUN
        from hashlens.training.split import image_facts

        values = dict(self.settings.training)
        recipe = str(values.pop("recipe", "auto"))
        values |= {"bits": self.settings.bits, "seed": self.seed}
        if self.weights is not None:
            values["weights"] = str(self.weights)
        images = self.collection.subset(self.split()[0])
        config, _ = configure(recipe, values, image_facts(images))
        text = json.dumps([config.to_toml(), self.collection.spec, len(images)])
        out = self.out / f"model-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        if (out / RUN).is_dir() or not (out / CONFIG_NAME).is_file():
            train(images, config, out, resume=(out / RUN).is_dir())
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
        whole = EncodedSet(codes, features, grown.labels)
        ways, sheets = self._search(whole, encoder.bits)
        plain = self._plain_features(grown)
        if plain is not None:
            bare = EncodedSet(codes, plain, grown.labels)
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
        images = track(
            (grown.load(row) for row in rows), "encode copies", len(rows), console=self.console
        )
        return list(encoder.encode_batches(images, strict=True))

    def _search(
        self, whole: EncodedSet, bits: int, *, plain: bool = False
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
        from hashlens.training.inputs import feature_inputs

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
        from hashlens.training.split import image_facts

        values = {"weights": str(self.weights)}
        if "backbone" in self.settings.training:
            values["backbone"] = self.settings.training["backbone"]
        config, _ = configure("finetune", values, image_facts(self.collection))
        assert config.backbone is not None  # resolved
        return create_backbone(config.backbone, size=config.size, weights=self.weights)


def _scores(scores: ModeScores) -> dict[str, Any]:
    return {
        "precision": {str(k): float(scores.precision[k - 1]) for k in KS},
        "map@1000": scores.mean_average_precision,
        "ms_per_query": scores.ms_per_query,
    }
