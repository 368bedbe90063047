"""Recipes: values of a configuration by name, and what the images and the hardware decide."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hashlens.errors import InvalidInputError
from hashlens.training.config import TrainingConfig

RECIPES = ("auto", "small", "finetune", "paper")
SMALL_SIDE = 64
FEATURE_LAYER = 256


@dataclass(frozen=True)
class ImageFacts:
    """What a choice of recipe depends on.

    Attributes
    ----------
    images : int
        Labelled images.
    side : int
        Median of the images' longer sides, in pixels.
    channels : int
        1 where all are grey, else 3.
    cuda : bool
        Whether a CUDA device is there.
    bf16 : bool
        Whether the hardware multiplies bfloat16 itself.
    """

    images: int
    side: int
    channels: int
    cuda: bool
    bf16: bool


def configure(
    recipe: str, overrides: Mapping[str, Any], facts: ImageFacts
) -> tuple[TrainingConfig, list[str]]:
    """Make a configuration that leaves nothing open."""
    reasons = []
    if recipe == "auto":
        side = overrides.get("size") or facts.side
        recipe = "small" if side <= SMALL_SIDE else "finetune"
        if overrides.get("weights"):
            recipe = "finetune"
        reasons.append(
            f"recipe {recipe}: the images are about {facts.side} px"
            + (", and weights to start from are given" if overrides.get("weights") else "")
            + f" (small is for up to {SMALL_SIDE} px, from scratch)"
        )
    values = {**recipe_values(recipe), **overrides}
    values.setdefault("recipe", Path(recipe).stem)
    config = TrainingConfig().with_values(values)
    open_values, why = _open_values(config, facts)
    return config.with_values(open_values), reasons + why


def recipe_values(recipe: str) -> dict[str, Any]:
    """Read a recipe."""
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise InvalidInputError(f"recipe: expected a file, found none at {recipe}")
        text = path.read_text(encoding="utf-8")
    elif recipe in RECIPES and recipe != "auto":
        text = (files(__package__) / f"{recipe}.toml").read_text(encoding="utf-8")
    else:
        raise InvalidInputError(
            f"recipe: expected one of {', '.join(RECIPES)}, or a .toml file, got {recipe!r}"
        )
    try:
        values = tomllib.loads(text)
        TrainingConfig().with_values(values)
    except (tomllib.TOMLDecodeError, InvalidInputError) as error:
        raise InvalidInputError(f"recipe {recipe}: {error}") from error
    return values


def _open_values(config: TrainingConfig, facts: ImageFacts) -> tuple[dict[str, Any], list[str]]:
    """Values for what a configuration leaves open, and the reasons of the larger choices."""
    grey = facts.channels == 1
    where = "a CUDA device" if facts.cuda else "no CUDA device"
    chosen: dict[str, Any] = {}
    reasons: list[str] = []
    scratch = config.recipe == "small"

    def choose(name: str, value: Any, why: str = "") -> None:
        if getattr(config, name) is None:
            chosen[name] = value
            if why:
                reasons.append(f"{name.replace('_', ' ')} {value}: {why}")

    if scratch:
        tiny = grey and facts.side <= 32
        name = "smallcnn" if tiny else "resnet9" if facts.cuda else "resnet9?width=32"
        choose("backbone", name, f"{'grey' if grey else 'colour'} images, {where}")
        choose("freeze_backbone", False)
        choose("size", min(max(facts.side, 8 if tiny else 16), SMALL_SIDE))
    else:
        name = "timm:resnet50" if facts.cuda else "timm:mobilenetv2_100"
        choose("backbone", name, where)
        choose("freeze_backbone", not facts.cuda, f"{where}" if not facts.cuda else "")
        if not facts.cuda and config.recipe != "paper":
            choose("size", 128, "quicker than the backbone's own size without a CUDA device")
    # A backbone that stays as it is knows nothing of the classes: a layer above it learns them.
    frozen = chosen.get("freeze_backbone", config.freeze_backbone)
    choose("feature_layer", FEATURE_LAYER if frozen else 0)
    choose("batch_size", 64 if facts.images < 5000 else 128 if facts.images < 20000 else 256)
    # Enough passes for a few thousand steps, whatever the number of images.
    passes = 30 if frozen else (16 if grey or not facts.cuda else 30) if scratch else 10
    few = min(100, -(-80_000 // max(facts.images, 1)))
    choose("epochs", max(passes, few if scratch or frozen else passes))
    choose("validation", 0.1 if facts.images < 20000 else 0.05)
    choose("flip", not grey)
    choose("rotate", 12.0 if grey and scratch else 0.0)
    choose("precision", "bf16" if facts.bf16 else "fp32")
    return chosen, reasons


def hardware() -> tuple[bool, bool]:
    """Whether a CUDA device is there, and whether the device at hand multiplies bfloat16 itself."""
    import torch

    if torch.cuda.is_available():
        return True, bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False, False
    return False, "avx512_bf16" in flags or "amx_bf16" in flags


def describe(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as plain values, for JSON."""
    return dataclasses.asdict(config)
