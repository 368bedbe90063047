"""The methods that learn features and codes together: ours, CNNH and CNNH+."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from hashlens.baselines import method_names
from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError
from hashlens.files import replace_file
from hashlens.machine import hardware, versions
from hashlens.models.checkpoint import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.paper.gist import gist
from hashlens.paper.published import OURS
from hashlens.report.progress import ProgressBar
from hashlens.training.config import TrainingConfig
from hashlens.types import Features
from hashlens.workflows.score import encode


@dataclass(frozen=True)
class Amounts:
    """How many images of each kind take part; None: all there are.

    Attributes
    ----------
    training, database, queries : int or None
        Images, spread evenly over the classes.
    """

    training: int | None = None
    database: int | None = None
    queries: int | None = None


@dataclass(frozen=True)
class Piece:
    """One experiment.

    Attributes
    ----------
    name, title : str
        On the command line, and in headings.
    hub : str
        Name of the data set on the hub, where no folder is given.
    size, channels : int
        Of its images.
    features : str
        What the shallow methods work on by default.
    methods : tuple of str
        All baselines and deep methods, in the order of the tables.
    bits : tuple of int
        Code lengths of the table of mean average precision; the first one is that of the curves.
    error_bits : tuple of int
        Code lengths whose classification error is reported.
    options : mapping of str to mapping
        Options of a shallow method, by name.
    training : mapping of str to value
        What the deep methods' training is told besides the recipe.
    amounts : Amounts
        Images that take part.
    seconds : mapping of str to float
        About how long a method takes, at the first code length, on two cores; by name, in the
        order of the tables. A method that is not named comes after those that are.
    """

    name: str
    title: str
    hub: str
    size: int
    channels: Literal[1, 3]
    features: str
    methods: tuple[str, ...]
    bits: tuple[int, ...]
    error_bits: tuple[int, ...]
    options: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    amounts: Amounts
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Products:
    """The experiment on a collection of any kind.

    Attributes
    ----------
    bits : int
        Length of a code.
    queries : int
        Images that ask, at most; each is left out of its own results.
    held_out : float
        Share of the images that do not train, for the accuracy.
    training : mapping of str to value
        What training is told.
    images : int or None
        Images that take part at most.
    """

    bits: int
    queries: int
    held_out: float
    training: Mapping[str, Any]
    images: int | None = None


def read_products(*, quick: bool = False) -> Products:
    """Read the experiment on a collection."""
    return Products(**_values("products", quick))


def read_piece(name: str, *, quick: bool = False) -> Piece:
    """Read a piece by name."""
    values = _values(name, quick)
    shallow = method_names()
    ordered = [method for method in values["seconds"] if method in shallow]
    methods = tuple(dict.fromkeys([*ordered, *shallow, *OBJECTIVES]))
    return Piece(
        name=name,
        title=values["title"],
        hub=values["hub"],
        size=values["size"],
        channels=values["channels"],
        features=values["features"],
        methods=methods,
        bits=tuple(values["bits"]),
        error_bits=tuple(values["error_bits"]),
        options=values.get("options", {}),
        training=values["training"],
        amounts=Amounts(**values.get("amounts", {})),
        seconds=values["seconds"],
    )


def _values(name: str, quick: bool) -> dict[str, Any]:
    values = tomllib.loads(
        (files(__package__) / "pieces" / f"{name}.toml").read_text(encoding="utf-8")
    )
    short = values.pop("quick")
    return values | short if quick else values


_PACKAGES = ("hashlens", "numpy", "scipy", "torch", "lightning")


class ResultStore:
    """A folder with one JSON file a result, named by method and configuration."""

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
        text = json.dumps(configuration, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return self._folder / f"{file_name(name)}-{digest}.json"


def file_name(method: str) -> str:
    """A method's name, fit for a file: ``CNNH+`` becomes ``cnnh-plus``."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower().replace("+", "-plus")).strip("-")


KINDS = ("pixels", "gist")


def read_features(
    kind: str, images: Source, size: int, channels: Literal[1, 3], cache: Path, console: Console
) -> Features:
    """Features of all images, shape (n, d), float32."""
    if kind not in KINDS:
        if not Path(kind).exists():
            raise InvalidInputError(
                f"features: expected {', '.join(KINDS)}, or a model's folder, got {kind!r}"
            )
        return encode(Encoder.load(kind), images, strict=True, progress=True).features
    unit = Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels)
    with ProgressBar("decoding", len(images), console=console) as bar:
        pixels = decode_source(images, unit, strict=True, progress=bar).pixels
    if kind == "pixels":
        return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    kept = cache / f"gist-{digest}.npy"
    if kept.is_file():
        found: NDArray[np.float32] = np.load(kept)
        return found
    with ProgressBar("GIST", len(images), console=console) as bar:
        found = gist(pixels, progress=bar)
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(kept, lambda aside: np.save(aside, found))
    return found


OBJECTIVES = {"CNNH": "cnnh", "CNNH+": "cnnh+", OURS: "latent"}


@dataclass(frozen=True)
class DeepMethod:
    """A method whose codes come from a network of its own."""

    name: str
    bits: int
    training: Mapping[str, Any]
    seed: int
    model: Path | None = None

    def configuration(self, train: Source) -> dict[str, Any]:
        """All that decides the model, as JSON values."""
        if self.model is not None:
            return {"model": Encoder.load(self.model).fingerprint}
        values = dataclasses.asdict(self._config(train))
        return {"training": values, "training_images": len(train)}

    def encoder(self, train: Source, folder: Path) -> tuple[Encoder, float]:
        """The trained model, and the seconds that its training took here (0: it was there).

        A run that was interrupted is continued.
        """
        if self.model is not None:
            return Encoder.load(self.model), 0.0
        from hashlens.training.fit import fit
        from hashlens.training.state import RUN

        text = json.dumps(self.configuration(train), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        out = folder / f"{file_name(self.name)}-{self.bits}-{digest}"
        started = time.monotonic()
        if (out / RUN).is_dir() or not (out / CONFIG_NAME).is_file():
            fit(train, self._config(train), out, resume=(out / RUN).is_dir())
            return Encoder.load(out), time.monotonic() - started
        return Encoder.load(out), 0.0

    def _config(self, train: Source) -> TrainingConfig:
        from hashlens.training.recipes import configure

        values = dict(self.training)
        recipe = str(values.pop("recipe", "auto"))
        values |= {"bits": self.bits, "objective": OBJECTIVES[self.name], "seed": self.seed}
        return configure(recipe, values, train)[0]
