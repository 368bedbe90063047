"""What a model is: its configuration, and the card that tells people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from hashlens.codes.packing import MAX_BITS, check_bits
from hashlens.data.preprocessing import Preprocessing, VectorInput, input_from_dict
from hashlens.errors import ModelError
from hashlens.types import MODES, Mode

FORMAT = "hashlens-model"
FORMAT_VERSION = 3
"""Models of version 1 differ in their fingerprint, which leaves the backbone's name out; models
before version 3 have no ``feature_scaling`` and no ``mode``."""

FeatureScaling: TypeAlias = Literal["none", "centred", "standardised"]
FEATURE_SCALINGS: tuple[FeatureScaling, ...] = get_args(FeatureScaling)
MAX_FEATURE_DIM = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights."""

    bits: int  # length of a code
    feature_dim: int  # width d of a feature vector
    # names of the classifier's outputs, in order; empty without a classifier
    classes: tuple[str, ...]
    backbone: str  # name that rebuilds the backbone's structure
    preprocessing: Preprocessing | VectorInput  # how images, or vectors, become the network's input
    # whether an image may have several classes (scores then go through a sigmoid each)
    multi_label: bool = False
    start_origin: str = "random"  # where the first weights came from, and under what licence
    start_licence: str = "none needed"
    radius: int | None = None  # proposed Hamming radius of the pool for ``hds``
    # features are F7 itself, or F7 less its mean (and divided by its deviation) per dimension,
    # brought to unit length
    feature_scaling: FeatureScaling = "none"
    mode: Mode | None = None  # the mode that found most on the validation images
    # what the training reports: data, split, recipe, validation figures, versions. JSON values
    training: Mapping[str, Any] = field(default_factory=dict)
    # hexadecimal digest of weights, backbone, preprocessing and bits; set when the model is saved
    fingerprint: str = ""
    # of the file it was read from: says how the fingerprint was made
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON form; :meth:`from_dict` reads it."""
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "training": dict(self.training),
        }

    @classmethod
    def from_dict(cls, values: Any, path: Path) -> ModelConfig:
        """Read the JSON form."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ModelError(f"{path}: this is not a Hashlens model; make one with hashlens train")
        version = values.get("format_version")
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ModelError(
                f"{path}: model format {version!r} is not known here (this Hashlens reads up to "
                f"{FORMAT_VERSION}); upgrade with pip install -U hashlens"
            )
        if version < 3:
            values = {"feature_scaling": "none", "mode": None, **values}
        try:
            return cls(
                bits=check_bits(int(values["bits"])),
                feature_dim=_whole(values["feature_dim"], 1, MAX_FEATURE_DIM),
                classes=tuple(str(name) for name in values["classes"]),
                backbone=str(values["backbone"]),
                preprocessing=input_from_dict(values["preprocessing"]),
                multi_label=bool(values["multi_label"]),
                start_origin=str(values["start_origin"]),
                start_licence=str(values["start_licence"]),
                radius=None if values["radius"] is None else _whole(values["radius"], 0, MAX_BITS),
                feature_scaling=_one_of(FEATURE_SCALINGS, values["feature_scaling"]),
                mode=None if values["mode"] is None else _one_of(MODES, values["mode"]),
                training=dict(values["training"]),
                fingerprint=str(values["fingerprint"]),
                format_version=version,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"{path}: an entry is missing or wrong ({error!r:.300}); the file was changed or "
                "cut: copy or train the model again"
            ) from error


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {value!r:.40}")
    return value


def _one_of(allowed: tuple[T, ...], value: Any) -> T:
    return allowed[allowed.index(value)]


def parse_config(text: str, path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model's JSON text; returns the configuration and the raw entries."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not readable as JSON ({error}); the file is cut or foreign: copy or train "
            "the model again"
        ) from error
    return ModelConfig.from_dict(values, path), values


CONFIG_NAME = "model.json"
WEIGHTS_NAME = r"weights-[0-9a-f]{12}\.safetensors"
TWIN_NAME = r"twin-[0-9a-f]{12}\.onnx"


def read_config(directory: Path) -> tuple[ModelConfig, Path]:
    """The configuration and the weights' path."""
    path = directory / CONFIG_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what = "no model here" if directory.is_dir() else "no such directory"
        raise ModelError(
            f"{directory}: {what} ({CONFIG_NAME} is missing); make one with hashlens train "
            f"SOURCE --out {directory}"
        ) from error
    except NotADirectoryError as error:
        raise ModelError(
            f"{directory}: expected the folder of a model that was trained, got a file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); check its permissions") from error
    config, values = parse_config(text, path)
    weights_name = values.get("weights")
    if not isinstance(weights_name, str) or not re.fullmatch(WEIGHTS_NAME, weights_name):
        raise ModelError(
            f"{path}: 'weights' names {weights_name!r}, not a weights-*.safetensors next to it; "
            "copy or train the model again"
        )
    return config, directory / weights_name


def require_own_place(model: Path, index: Path) -> None:
    """Raise ``ModelError`` if an index, perhaps somebody else's, brings its model along."""
    named, real = Path(os.path.abspath(model)), Path(os.path.realpath(model))
    systems = {named.parts[1:2], real.parts[1:2]} & {("proc",), ("dev",), ("sys",)}
    if systems or real.is_relative_to(os.path.realpath(index)):
        raise ModelError(
            f"{model}: the index {index} names this as its model, which is not followed into an "
            "index or a folder of the system; if you trust it, give it with --model"
        )


class Twin(NamedTuple):
    """The same network as ONNX, in the model's folder, and what it and the weights hold."""

    path: Path
    sha256: str
    weights_sha256: str


def read_twin(directory: Path) -> Twin | None:
    """The ONNX twin that a model's description names, where it names one."""
    try:
        values = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        twin = values["twin"]
        name, digests = twin["file"], (str(twin["sha256"]), str(twin["weights_sha256"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not re.fullmatch(TWIN_NAME, str(name)):
        return None
    return Twin(directory / name, *digests)


def described_files(directory: Path) -> list[str]:
    """Names of the files that a model's description names: its weights, and its twin if any."""
    twin = read_twin(directory)
    return [read_config(directory)[1].name, *([twin.path.name] if twin else [])]


CARD_NAME = "README.md"
_MOST_CLASSES = 50
_SCALINGS = {
    "none": "as the network makes them",
    "centred": "centred and of unit length",
    "standardised": "standardised and of unit length",
}


def model_card(config: ModelConfig) -> str:
    """Markdown text of a model's card."""
    training = config.training
    sections = {key: value for key, value in training.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in training.items() if key not in sections}
    what = "a vector" if isinstance(config.preprocessing, VectorInput) else "an image"
    given = "vectors" if what == "a vector" else "images"
    parts = [
        _front_matter(config),
        f"# Hashlens model, {config.bits} bits",
        f"Turns {what} into a binary code and a feature vector, to search for similar ones "
        "(Lin et al., CVPR Workshops 2015). Use it with\n\n"
        '```python\nfrom hashlens import Encoder\n\nencoder = Encoder.load("THIS_DIRECTORY")\n'
        f"codes, features = encoder.encode({given})\n```",
        "## Network\n\n" + _table(_network(config)),
        "## Starting weights\n\n"
        + _table({"origin": config.start_origin, "licence": config.start_licence}),
        f"## Classes ({len(config.classes)})\n\n{_classes(config)}",
    ]
    if plain:
        parts.append("## Training\n\n" + _table(plain))
    for key, value in sections.items():
        parts.append(f"## {key.replace('_', ' ').capitalize()}\n\n{_table(value)}")
    parts.append(
        "## Limits\n\nCodes and features are comparable only between images encoded by this "
        "fingerprint. Figures above were seen on a validation split of the training data; images "
        "of another kind can do worse."
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(config: ModelConfig) -> str:
    """What model hubs read of a card."""
    lines = ["library_name: hashlens", "tags: [image-retrieval, learning-to-hash]"]
    if not isinstance(config.preprocessing, VectorInput):
        lines.append("pipeline_tag: image-feature-extraction")
    if re.fullmatch(r"[a-z0-9.-]+", config.start_licence):  # an identifier, not a sentence
        lines.append(f"license: {config.start_licence}")
    if config.start_origin.startswith("timm "):
        lines.append(f"base_model: timm/{config.start_origin.removeprefix('timm ')}")
    source = str(config.training.get("source", ""))
    if source.startswith("hub:"):
        lines.append(f"datasets: [{source.removeprefix('hub:').partition('#')[0]}]")
    found = config.training.get("validation", {})  # neither is known where there were no labels
    if found.get("map") is not None or found.get("error") is not None:
        lines.append("metrics: [mean_average_precision, accuracy]")
    return "\n".join(("---", *lines, "---"))


def _network(config: ModelConfig) -> dict[str, Any]:
    image = config.preprocessing
    if isinstance(image, VectorInput):
        taken = f"vectors of {image.width} values, {image.metric} metric"
    else:
        taken = f"{image.size} x {image.size} px, {image.channels} channel(s), {image.resize}"
    return {
        "backbone": config.backbone,
        "bits": config.bits,
        "features": f"{config.feature_dim}, {_SCALINGS[config.feature_scaling]}",
        "input": taken,
        "labels": "several per image" if config.multi_label else "one per image",
        "proposed mode": config.mode or "not measured",
        "proposed radius": "not measured" if config.radius is None else config.radius,
        "fingerprint": config.fingerprint,
    }


def _classes(config: ModelConfig) -> str:
    if not config.classes:
        return "None: the codes were learned without labels."
    shown = ", ".join(_escape(name) for name in config.classes[:_MOST_CLASSES])
    left = len(config.classes) - _MOST_CLASSES
    return shown + (f" and {left} more, listed in model.json" if left > 0 else "")


def _table(values: Mapping[str, Any]) -> str:
    rows = [
        f"| {_escape(key.replace('_', ' '))} | {_escape(_text(v))} |" for key, v in values.items()
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    return str(value)


def _escape(value: object) -> str:
    """Text that stays in its table cell and is not read as HTML or Markdown."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "`", "<", "[", "*"):
        text = text.replace(mark, f"\\{mark}")
    return text
