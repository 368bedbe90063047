"""The configuration of a training run: one frozen dataclass.

A new option is one field of ``TrainingConfig``. Its check, its option of ``hashlens train`` and its
row in docs/reference/training.md derive from the field.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from hashlens.errors import InvalidInputError
from hashlens.models.backbones import describe_backbones
from hashlens.training.objectives import objectives

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _option(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] = (),
    flag: str | None = None,
) -> Any:
    """A field with its help, its range or choices, and its flag where that is not its name."""
    facts = {"help": help, "low": low, "high": high, "choices": choices, "flag": flag}
    return dataclasses.field(default=default, metadata=facts)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run, besides the images.

    ``None`` means that images and hardware decide (``training.recipes``). In a resolved
    configuration only ``weights``, ``start``, and ``size`` where it is the backbone's own, may be
    None.
    """

    recipe: str = _option("small", "Recipe that the values come from")
    bits: int = _option(48, "Length of a code; 48 if left out", 8, 4096)
    objective: str = _option("latent", "What is minimised", choices=tuple(objectives()))
    backbone: str | None = _option(None, " or ".join(describe_backbones()))
    weights: str | None = _option(None, "File with weights that the backbone starts from")
    start: str | None = _option(
        None,
        "Folder of a model to train on from, with its own options and, where no class is new, a "
        "fifth of its rate",
        flag="--from",
    )
    pretrained: bool | None = _option(None, "Start from the backbone's published weights")
    freeze_backbone: bool | None = _option(
        None,
        "Train only the layers above the backbone, on features computed once",
        flag="--freeze-backbone/--train-backbone",
    )
    frozen_share: float = _option(
        0.0, "Share of the backbone's weights, from the image on, that stay as they are", 0, 1
    )
    feature_layer: int | None = _option(
        None, "Units of a trained layer F7 over the backbone; 0: the backbone's features are F7", 0
    )
    freeze_statistics: bool = _option(
        False, "Keep the backbone's batch normalisation at its pre-trained mean and deviation"
    )
    latent_normalisation: bool = _option(
        True, "Normalise each latent unit over the batch before its sigmoid"
    )
    latent_dropout: float = _option(0.0, "Share of F7 that is left out before H", 0, 0.9)
    latent_std: float = _option(
        0.0, "Standard deviation of H's first weights (normal distribution); 0: PyTorch's start", 0
    )
    latent_bias: float = _option(0.0, "First bias of H, where latent_std is not 0")
    metric: Literal["cosine", "euclidean"] = _option(
        "cosine", "Of ready vectors: cosine compares their directions alone"
    )
    size: int | None = _option(None, "Side of the network's input in pixels", 8, 1024)
    epochs: int | None = _option(None, "Passes over the training images", 1)
    batch_size: int | None = _option(None, "Images per step, over all devices together", 2)
    accumulate: int = _option(
        1, "Steps whose gradients are added up before the weights move, when memory is short", 1
    )
    optimizer: Literal["sgd", "adamw"] = _option("sgd", "Method of the steps")
    learning_rate: float = _option(0.1, "Peak rate of the latent layer", 0, 1000)
    backbone_rate: float = _option(1.0, "Multiplies the rate for the backbone", 0, 1000)
    layer_decay: float = _option(
        1.0, "Multiplies the rate once more at the backbone's first layer, less above it", 0, 1
    )
    classifier_rate: float = _option(1.0, "Multiplies the rate for the classifier F8", 0, 1000)
    bias_rate: float = _option(1.0, "Multiplies the rate for biases", 0, 1000)
    momentum: float = _option(0.9, "Momentum of SGD; Nesterov's unless schedule is step", 0, 0.9999)
    weight_decay: float = _option(
        5e-4, "Weight decay; biases and normalisation weights have none", 0, 10
    )
    schedule: Literal["step", "onecycle", "cosine"] = _option(
        "onecycle", "Form of the learning rate over the steps"
    )
    warmup: float = _option(0.2, "Share of the steps in which the rate rises", 0, 0.9)
    label_smoothing: float = _option(0.0, "Share of a label spread over all classes", 0, 0.9)
    crop: float = _option(0.0, "Random shift, as a share of the side", 0, 0.5)
    flip: bool | None = _option(None, "Mirror each image in every other epoch")
    rotate: float | None = _option(
        None, "Random rotation up to so many degrees, with a tenth of scale; 0: neither", 0, 180
    )
    zoom: float = _option(
        0.0, "Random zoom into a part whose sides are at least 1 - zoom of the image's", 0, 0.9
    )
    light: float = _option(
        0.0, "Random change of brightness, contrast and saturation, up to this share", 0, 0.9
    )
    cutout: float = _option(0.0, "Blank a random square with sides of this share", 0, 0.9)
    average: float = _option(
        0.0, "Decay of the average of weights that is validated and kept; 0: none", 0, 0.99999
    )
    balanced: bool = _option(False, "Draw every class equally often")
    validation: float | None = _option(
        None, "Share of the images held out to choose the best epoch", 0.001, 0.9
    )
    precision: Literal["fp32", "bf16"] | None = _option(None, "Arithmetic of the network")
    compile: bool = _option(False, "Use torch.compile")
    seed: int = _option(0, "Decides split, first weights, order and augmentation; 0 if left out")

    def __post_init__(self) -> None:
        for option in options():
            option.check(getattr(self, option.name))

    def with_values(self, values: Mapping[str, Any]) -> TrainingConfig:
        """Return a copy with some values replaced."""
        known = [option.name for option in options()]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InvalidInputError(
                f"unknown key {', '.join(unknown)}; the keys are: {', '.join(known)}"
            )
        return dataclasses.replace(self, **values)

    def to_toml(self) -> str:
        """Write the configuration as TOML; keys without a value are left as comments."""
        # JSON's strings, numbers and booleans are TOML's as well.
        lines = [
            f"# {name} = chosen by images and hardware"
            if value is None
            else f"{name} = {json.dumps(value)}"
            for name, value in dataclasses.asdict(self).items()
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Option:
    """A field of ``TrainingConfig`` as a user meets it."""

    name: str  # key in a configuration
    help: str  # one sentence without its full stop
    flag: str  # option of the command line
    kind: type  # bool, int, float or str
    default: Any
    open: bool  # whether None is allowed
    choices: tuple[str, ...]  # all values that are allowed; empty: any
    low: float | None
    high: float | None

    @property
    def values(self) -> str:
        """The range or the choices in words; empty where there are none."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None:
            return ""
        return f"{self.low:g} or more" if self.high is None else f"{self.low:g} to {self.high:g}"

    def check(self, value: Any) -> None:
        """Refuse a value of another type or outside of the range."""
        if value is None and self.open:
            return
        right = type(value) is self.kind or (self.kind is float and type(value) is int)
        if right and self.choices:
            right = value in self.choices
        if right and self.low is not None:
            right = self.low <= value <= (float("inf") if self.high is None else self.high)
        if not right:
            kind = "one of " if self.choices else _KINDS[self.kind] + ", " * bool(self.values)
            raise InvalidInputError(f"{self.name}: expected {kind}{self.values}, got {value!r}")


@cache
def options() -> tuple[Option, ...]:
    """Every field of ``TrainingConfig``."""
    hints = typing.get_type_hints(TrainingConfig)
    found = []
    for field in dataclasses.fields(TrainingConfig):
        hint, facts = hints[field.name], dict(field.metadata)
        parts = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        (kind,) = (part for part in parts if part is not type(None))
        if typing.get_origin(kind) is Literal:
            facts["choices"], kind = typing.get_args(kind), str
        flag = f"--{field.name.replace('_', '-')}"
        flag += f"/--no-{flag[2:]}" if kind is bool else ""
        facts["flag"] = facts["flag"] or flag
        found.append(
            Option(field.name, kind=kind, default=field.default, open=len(parts) > 1, **facts)
        )
    return tuple(found)
