"""What a training run is told: one frozen dataclass, filled from a recipe and the command line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hashlens.errors import InvalidInputError

MIN_BITS, MAX_BITS = 8, 1024
OBJECTIVES = ("latent", "ssdh", "greedyhash", "csq", "cnnh", "cnnh+")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run, besides the images.

    ``None`` means "chosen by the images and the hardware" (``training.recipes.configure``); a
    resolved configuration holds none, except ``weights``, and ``size`` where the backbone's own is
    taken, and is written into the result.

    Attributes
    ----------
    recipe : str
        Name of the recipe the values came from.
    bits : int
        Length of a code, 8 to 1024.
    objective : {"latent", "ssdh", "greedyhash", "csq", "cnnh", "cnnh+"}
        What is minimised; see ``training/objectives/``.
    backbone : str, optional
        A name that ``models.backbones.create_backbone`` knows.
    weights : str, optional
        File with the backbone's pre-trained weights.
    pretrained : bool
        Fetch the backbone's published weights where no file is given.
    freeze_backbone : bool, optional
        Train the latent layer and the classifier alone, on features computed once.
    feature_layer : int, optional
        Units of an F7 of its own, trained over the backbone's features; 0: these are F7. None:
        256 over a frozen backbone.
    freeze_statistics : bool
        Keep the backbone's batch normalisation at its pre-trained mean and deviation.
    latent_normalisation : bool
        Normalise each latent unit over the batch before its sigmoid.
    size : int, optional
        Side of the square images the network sees, in pixels.
    epochs : int, optional
        Passes over the training images.
    batch_size : int, optional
        Images a step, over all devices together.
    accumulate : int
        Steps whose gradients are added up before the weights move.
    optimizer : {"sgd", "adamw"}
        SGD uses ``momentum`` (Nesterov's, unless the schedule is ``step``).
    learning_rate : float
        Rate of the latent layer at the schedule's peak.
    backbone_rate : float
        Multiplies the rate for the backbone.
    layer_decay : float
        Multiplies it once more at the backbone's first layer, geometrically in between.
    classifier_rate : float
        Multiplies the rate for the classifier F8.
    momentum : float
        Momentum of SGD.
    weight_decay : float
        Not applied to biases and normalisation weights.
    schedule : {"step", "onecycle", "cosine"}
        Form of the learning rate over the steps; see ``training.schedules``.
    warmup : float
        Share of the steps in which the rate rises.
    label_smoothing : float
        Share of a label spread over all classes.
    crop : float
        Random shift, as a share of the side.
    flip : bool, optional
        Mirror half of the images; None: for colour images only.
    rotate : float, optional
        Random rotation up to so many degrees, and a tenth of scale where it is not 0; None: for
        grey images of the recipe ``small`` only.
    average : float
        Decay of the moving average of the weights that is validated and kept; 0: none.
    balanced : bool
        Draw every class equally often.
    validation : float, optional
        Share of the labelled images held out to choose the best epoch.
    precision : {"fp32", "bf16"}, optional
        Arithmetic of the network's forward and backward pass.
    compile : bool
        Compile the network with ``torch.compile``.
    seed : int
        Decides split, initial weights, order and augmentation.
    """

    recipe: str = "small"
    bits: int = 48
    objective: str = "latent"
    backbone: str | None = None
    weights: str | None = None
    pretrained: bool = True
    freeze_backbone: bool | None = None
    feature_layer: int | None = None
    freeze_statistics: bool = False
    latent_normalisation: bool = True
    size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
    classifier_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["step", "onecycle", "cosine"] = "onecycle"
    warmup: float = 0.2
    label_smoothing: float = 0.0
    crop: float = 0.0
    flip: bool | None = None
    rotate: float | None = None
    average: float = 0.0
    balanced: bool = False
    validation: float | None = None
    precision: Literal["fp32", "bf16"] | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        _check_range("bits", self.bits, MIN_BITS, MAX_BITS)
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(
                f"objective: expected one of {', '.join(OBJECTIVES)}, got {self.objective!r}"
            )
        for name, low, high in _RANGES:
            if (value := getattr(self, name)) is not None:
                _check_range(name, value, low, high)

    def with_values(self, values: Mapping[str, Any]) -> TrainingConfig:
        """Return a copy with some values replaced."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InvalidInputError(
                f"unknown key {', '.join(unknown)}; the keys are: {', '.join(known)}"
            )
        return dataclasses.replace(self, **values)

    def to_toml(self) -> str:
        """Write the configuration as TOML; keys without a value are left as comments."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # JSON's strings, numbers and booleans are TOML's as well.
            lines.append(
                f"# {field.name} = chosen by images and hardware"
                if value is None
                else f"{field.name} = {json.dumps(value)}"
            )
        return "\n".join(lines) + "\n"


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("size", 8, 1024),
    ("epochs", 1, 100_000),
    ("feature_layer", 0, 100_000),
    ("batch_size", 2, 1_000_000),
    ("accumulate", 1, 10_000),
    ("learning_rate", 0.0, 1000.0),
    ("backbone_rate", 0.0, 1000.0),
    ("layer_decay", 0.0, 1.0),
    ("classifier_rate", 0.0, 1000.0),
    ("momentum", 0.0, 0.9999),
    ("weight_decay", 0.0, 10.0),
    ("warmup", 0.0, 0.9),
    ("label_smoothing", 0.0, 0.9),
    ("crop", 0.0, 0.5),
    ("rotate", 0.0, 180.0),
    ("average", 0.0, 0.99999),
    ("validation", 0.001, 0.9),
)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{name}: expected {low:g} to {high:g}, got {value:g}")


def _check_type(name: str, value: Any, hint: Any) -> None:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is typing.Union:
        kinds = typing.get_args(hint)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return
        elif type(value) is kind or (kind is float and type(value) is int):
            return
    wanted = " or ".join(
        ", ".join(map(repr, typing.get_args(kind)))
        if typing.get_origin(kind) is Literal
        else kind.__name__
        for kind in kinds
        if kind is not type(None)
    )
    raise InvalidInputError(f"{name}: expected {wanted}, got {value!r}")
