"""What the comparison and the experiment on products share: pieces, printed figures, results."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from hashlens.baselines import method_names
from hashlens.codes.packing import unpack_bits
from hashlens.data.source import Source
from hashlens.evaluation.scoring import ModeScores, score_searcher
from hashlens.files import replace_file
from hashlens.index.ranking import ArraySearcher
from hashlens.machine import hardware, versions
from hashlens.models.backbones import Backbone
from hashlens.models.description import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.report.page import Table
from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet
from hashlens.training.config import TrainingConfig
from hashlens.types import EncodedBatch, EncodedImages, Features

OURS = "Hashlens"
"""Name of this implementation's own method in tables; the authors call theirs DLBHC."""

OBJECTIVES = {"CNNH": "cnnh", "CNNH+": "cnnh+", OURS: "latent"}
"""The methods that learn features and codes together, and the objectives they train with."""


@dataclass(frozen=True)
class Amounts:
    """How many images of each kind take part, evenly over the classes; None: all there are."""

    training: int | None = None
    database: int | None = None
    queries: int | None = None


@dataclass(frozen=True)
class Piece:
    """One experiment on one of the paper's data sets.

    ``methods`` and ``bits`` are in the
    order of the tables; the curves are drawn at the first length. ``training`` holds recipe and
    options of the deep methods, ``options`` those of a shallow method by name. ``seconds`` is about
    how long a method takes at the first length on two cores; methods that are not named there come
    last.
    """

    name: str
    title: str
    size: int
    channels: Literal[1, 3]
    features: str
    methods: tuple[str, ...]
    bits: tuple[int, ...]
    error_bits: tuple[int, ...]
    training: Mapping[str, Any]
    seconds: Mapping[str, float]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    amounts: Amounts = Amounts()


def read_piece(name: str, *, quick: bool = False) -> Piece:
    """Read a piece by name."""
    values, shallow = _values(name, quick), method_names()
    ordered = [method for method in values["seconds"] if method in shallow]
    methods = tuple(dict.fromkeys([*ordered, *shallow, *OBJECTIVES]))
    amounts = Amounts(**values.pop("amounts", {}))
    return Piece(name=name, methods=methods, amounts=amounts, **values)


@dataclass(frozen=True)
class Products:
    """The experiment on a collection of any kind.

    At most ``queries`` images are queries, each left out of its own results; a share of
    ``held_out`` is kept out of training, for the accuracy; at most ``images`` take part.
    """

    bits: int
    queries: int
    held_out: float
    training: Mapping[str, Any]
    images: int | None = None


def read_products(*, quick: bool = False) -> Products:
    """Read the experiment on a collection."""
    return Products(**_values("products", quick))


def _values(name: str, quick: bool) -> dict[str, Any]:
    text = (files(__package__) / "pieces" / f"{name}.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    short = values.pop("quick")
    values |= short if quick else {}
    return {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}


class Printed(NamedTuple):
    """A figure as somebody printed it; ``published/README.md`` says more of the sources."""

    piece: str
    figure: str
    method: str
    bits: str  # empty for methods without codes
    cutoff: str  # k of a precision or a mean average precision; "all": of the whole ranking
    value: float
    protocol: str
    network: str  # empty where the source does not say
    source: str


@cache
def all_printed() -> tuple[Printed, ...]:
    """All figures that others printed."""
    text = (files(__package__) / "published" / "figures.csv").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return tuple(Printed(**{**row, "value": float(row["value"])}) for row in rows)


def printed_figures(
    piece: str, figure: str, bits: int | None, protocol: str = "paper"
) -> dict[tuple[str, int], float]:
    """The authors' figures of one kind with so many bits, by method and k (0: it has none).

    Without bits: those of methods without codes.
    """
    wanted = (piece, figure, str(bits or ""), protocol)
    return {
        (one.method.replace("DLBHC", OURS), int(one.cutoff or 0)): one.value
        for one in all_printed()
        if (*one[:2], one.bits, one.protocol) == wanted and one.cutoff != "all"
    }


_PACKAGES = ("hashlens", "numpy", "scipy", "torch", "lightning")


class ResultStore:
    """A folder with one JSON file per result, named by method and configuration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, configuration: dict[str, Any]) -> dict[str, Any] | None:
        """What was kept for exactly this configuration, or None."""
        try:
            kept = json.loads(self._path(name, configuration).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or cut by a crash: run it
            return None
        return (
            kept if isinstance(kept, dict) and kept.get("configuration") == configuration else None
        )

    def put(
        self, name: str, configuration: dict[str, Any], scores: dict[str, Any]
    ) -> dict[str, Any]:
        """Keep a result with its configuration, versions and hardware; returns what is kept."""
        kept = {
            "method": name,
            "configuration": configuration,
            "scores": scores,
            "versions": versions(*_PACKAGES),
            "hardware": hardware(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self._path(name, configuration)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(kept, indent=1) + "\n")
        return kept

    def _path(self, name: str, configuration: dict[str, Any]) -> Path:
        return self._folder / f"{file_name(name)}-{short_digest(configuration)}.json"


def short_digest(values: Any) -> str:
    """Ten characters that differ where JSON values differ."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def file_name(method: str) -> str:
    """A method's name, fit for a file: ``CNNH+`` becomes ``cnnh-plus``."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower().replace("+", "-plus")).strip("-")


def training_config(options: Mapping[str, Any], images: Source) -> TrainingConfig:
    """A recipe with changed options, for some images."""
    from hashlens.training.recipes import configure

    options = dict(options)
    return configure(str(options.pop("recipe", "auto")), options, images)[0]


def train_named(
    images: Source, options: Mapping[str, Any], out: Path, rows: Any
) -> tuple[Encoder, float]:
    """As ``train_once``, with the options given, in a folder that they and the rows name."""
    known = {name: value for name, value in options.items() if value is not None}
    config = training_config(known, images)
    digest = short_digest([config.to_toml(), images.spec, rows])
    return train_once(images, config, out / f"model-{digest}")


def train_once(images: Source, config: TrainingConfig, out: Path) -> tuple[Encoder, float]:
    """The model in a folder, and the seconds that its training took now (0: it was there).

    A run that was interrupted is continued.
    """
    from hashlens.training.fit import fit
    from hashlens.training.folder import RUN

    started, stopped = time.monotonic(), (out / RUN).is_dir()
    if not stopped and (out / CONFIG_NAME).is_file():
        return Encoder.load(out), 0.0
    fit(images, config, out, resume=stopped)
    return Encoder.load(out), time.monotonic() - started


def plain_features(source: Source, backbone: Backbone, kept: Path, console: Console) -> Features:
    """F7 of a backbone as it is, (n, d); read from the file ``kept`` if it is there."""
    from hashlens.training.data import feature_inputs

    kept.parent.mkdir(parents=True, exist_ok=True)
    network = backbone.module
    inputs = feature_inputs(
        source, backbone.preprocessing, network, kept, strict=True, console=console
    )
    features: Features = inputs.pixels.gather(np.arange(len(inputs.rows)))[0].numpy()
    return features.astype(np.float32)


def joined(
    parts: Sequence[EncodedBatch | EncodedImages], labels: NDArray[np.int64]
) -> EncodedImages:
    """Codes, features and latent values of several batches, with the labels of all images."""
    latent = [part.latent for part in parts if part.latent is not None]
    return EncodedImages(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.features for part in parts]),
        labels,
        latent=np.concatenate(latent) if latent else None,
    )


KS = (1, 5, 10, 50, *range(100, 1001, 100))
"""Cutoffs of precision in results and curves."""


def search_ways(
    database: EncodedImages, queries: EncodedImages, bits: int, **options: Any
) -> dict[str, ModeScores]:
    """Search in memory, in the ways and with the other options of ``score_searcher``."""
    searcher = ArraySearcher(database.codes, database.features)
    found = score_searcher(searcher, database, queries, bits=bits, precision_at=KS, **options)
    return dict(found.modes.items())


def mode_scores(scores: ModeScores) -> dict[str, Any]:
    """The scores of one way to search, as they are kept."""
    return {
        "precision": {str(k): scores.precision[k] for k in KS},
        "map@1000": scores.mean_average_precision,
        "map@1000_ties": scores.expected_mean_average_precision,
        "map@all": scores.more["map@all"],
        "ms_per_query": scores.ms_per_query,
    }


PLAIN, WITHOUT_H = "plain", "without h"
WAYS = {
    PLAIN: "plain backbone F7",
    WITHOUT_H: "F7 without H",
    "es": "ES (F7)",
    "bcs": "BCS (codes)",
    "acs": "ACS (codes, then latent values)",
    "hds": "HDS (codes, then F7)",
    "neural codes": "neural codes (ES over F7 compressed by PCA)",
}
"""Ways to search, as results name them, and as tables do."""


def ways_table(ways: Mapping[str, Mapping[str, Any]]) -> Table:
    """Scores and time per query of each way to search, and how much faster than ES it is."""
    ks = ("1", "10", "100", "1000")
    headers = ["", *(f"precision@{k}" for k in ks), "mAP@1000", "ms per query", "ES time / time"]
    rows = []
    for key in [key for key in WAYS if key in ways]:
        way, spent = ways[key], ways[key]["ms_per_query"]
        times = (f"{spent:.3f}", f"{ways['es']['ms_per_query'] / spent:.1f}")
        rows.append([WAYS[key], *(way["precision"][k] for k in ks), way["map@1000"], *times])
    return Table(headers, rows, digits=3)


def made_on(kept: Mapping[str, Any]) -> str:
    """Hardware and versions of a kept result, in words."""
    packages = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    return f"{kept['hardware']}; {packages}."


SheetRow: TypeAlias = tuple[int, str, Mapping[str, Sequence[tuple[int, str]]]]
"""A query, its code in hexadecimal, and for each method the nearest rows with captions."""


def draw_sheet(images: Source, rows: Sequence[SheetRow], bits: int, tile: int) -> Image.Image:
    """Draw queries with their nearest images; all are rows of ``images``."""

    def name(row: int) -> str:
        return images.label_name(row) or ""

    queries = []
    for query, code, nearest in rows:
        same = images.labels == images.labels[query]
        tiles = {
            method: [Neighbour(str(row), name(row), text, bool(same[row])) for row, text in found]
            for method, found in nearest.items()
        }
        packed = np.frombuffer(bytes.fromhex(code), np.uint8)[None]
        bare = unpack_bits(packed, bits)[0]
        queries.append(SheetQuery(str(query), name(query), tiles, bare))
    return picture_sheet(queries, lambda row: images.load(int(row)), tile=tile)
