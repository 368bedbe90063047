"""Recipes: values of a configuration by name, and what the images and the hardware decide."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.data.labels import class_counts, require_labels, rows_to_learn, without_labels
from hashlens.data.preprocessing import VectorInput
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError
from hashlens.machine import has_cuda, multiplies_bfloat16
from hashlens.models.backbones import has_published_weights, keeps_its_size, vectors_name
from hashlens.models.description import read_config
from hashlens.training.config import TrainingConfig, options
from hashlens.training.objectives import objectives

RECIPES = ("auto", "small", "finetune", "paper", "vectors")
SMALL_SIDE = 64
FEATURE_LAYER = 256
# Networks of depthwise convolutions: on processors bfloat16 made these 16 to 26 % slower.
_DEPTHWISE = ("mobilenet", "efficientnet", "mnasnet", "lcnet", "ghostnet", "tinynet")
_PROBES, _TIMED = 24, 16
FINE_TUNING = 10
"""Passes over the images where a pre-trained backbone is trained too."""
MINUTES = 60
"""Fine-tuning is the default on a processor where it takes at most so long, by a measurement."""


@dataclass(frozen=True)
class ImageFacts:
    """What a choice of recipe depends on."""

    images: int  # images to learn from
    side: int  # median of the images' longer sides, in pixels
    channels: int  # 1 where all are grey, else 3
    cuda: bool  # whether there is a CUDA device
    bf16: bool  # whether the hardware multiplies bfloat16 itself
    # images per second of training with the backbone; measured where it is needed and not given
    rate: float | None = None


def image_facts(source: Source) -> ImageFacts:
    """Measure what the choice of a recipe depends on, from a few images."""
    rows, cuda, bf16 = rows_to_learn(source), has_cuda(), multiplies_bfloat16()
    if source.vectors is not None:
        return ImageFacts(len(rows), 0, 3, cuda, bf16)
    probes = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBES)).astype(int)]
    sides, grey, failed = [], True, ""
    for row in probes.tolist():
        try:
            image = source.load(row)
        except SourceError as error:
            failed = str(error)
            continue
        sides.append(max(image.size))
        grey = grey and image.mode == "L"
    if not sides:
        raise SourceError(
            f"{source.spec}: none of {len(probes)} images tried can be read: {failed}"
        )
    return ImageFacts(len(rows), int(np.median(sides)), 1 if grey else 3, cuda, bf16)


def taught(source: Source, config: TrainingConfig) -> Source:
    """The source with the labels that a training reads, or without any.

    An objective that needs none reads them where each image has one, of two classes or more.
    """
    if not objectives()[config.objective].labels and not config.balanced:
        unlabelled = len(source) - len(source.labelled)
        if unlabelled or np.count_nonzero(class_counts(source)) < 2:
            if source.classes:
                note = f"{unlabelled} of {len(source)} have no label: none is read, all are used"
                source = replace(source, notes=(*source.notes, note))
            return without_labels(source)
    require_labels(source, images=1)
    return source


def configure(
    recipe: str, values: Mapping[str, Any], images: Source | ImageFacts
) -> tuple[TrainingConfig, list[str]]:
    """A configuration that leaves nothing open, and the reasons for what was chosen."""
    reasons = []
    if values.get("start"):
        return train_on(values, images)
    named = recipe_values(recipe)
    if isinstance(images, Source):
        images = taught(images, TrainingConfig().with_values({**named, **values}))
        if images.vectors is not None:
            recipe = "vectors" if recipe == "auto" else recipe
            if recipe in ("small", "finetune", "paper"):
                raise InvalidInputError(f"recipe {recipe}: is for images; leave it out for vectors")
            values = {**values, "backbone": vectors_backbone(images, values)}
        images = image_facts(images)
    if recipe == "auto":
        recipe, reason = _automatic_recipe(values, images)
        reasons.append(reason)
    chosen = {**(named or recipe_values(recipe)), **values}
    chosen.setdefault("recipe", Path(recipe).stem)
    config, why = _complete(TrainingConfig().with_values(chosen), images)
    random = not (config.pretrained or config.weights or config.recipe == "vectors")
    if config.freeze_backbone and random:
        raise InvalidInputError(
            f"freeze_backbone: {config.backbone} starts random, and a frozen random network learns "
            "nothing; give --weights FILE, name a pre-trained network such as "
            "--backbone timm:mobilenetv2_100 (without --no-pretrained), or train it with "
            "--train-backbone"
        )
    return config, reasons + why


_AGAIN = 0.2  # of a model's own rate, where its classes are all known: what was learned should stay
_STRUCTURE = ("bits", "backbone", "size", "feature_layer", "weights", "pretrained", "metric")


def train_on(
    values: Mapping[str, Any], images: Source | ImageFacts
) -> tuple[TrainingConfig, list[str]]:
    """The configuration of a model of one's own, to train on from it, and what is other."""
    start = Path(values["start"])
    described = read_config(start)[0]
    own = described.training.get("configuration")
    if not isinstance(own, dict):
        raise InvalidInputError(f"from: {start} was not trained with labels; give another model")
    own = {option.name: own[option.name] for option in options() if option.name in own}
    for name in _STRUCTURE:
        if values.get(name) not in (None, own.get(name)):
            raise InvalidInputError(
                f"{name}: is {own.get(name)} in {start}, and stays so; leave it out, or train "
                "without --from"
            )
    classes = images.classes if isinstance(images, Source) else ()
    new = [name for name in classes if name not in described.classes]
    rate = own["learning_rate"] * (1.0 if new else _AGAIN)
    again = {"weights": None, "pretrained": False, "learning_rate": rate}
    config = TrainingConfig().with_values({**own, **again, **values})
    rate = config.learning_rate
    return config, [
        f"from {start}: its own options, a learning rate of {rate:g}, and {len(new)} new classes"
    ]


def vectors_backbone(source: Source, values: Mapping[str, Any]) -> str:
    """The backbone of a source of vectors; options that only images have are refused."""
    for name in ("backbone", "weights", "pretrained", "freeze_backbone", "size"):
        if values.get(name) is not None:
            raise InvalidInputError(f"{name}: goes with images, not with vectors; leave it out")
    assert source.vectors is not None  # the caller has checked
    metric = values.get("metric") or TrainingConfig().metric
    return vectors_name(VectorInput(source.vectors.width, metric))


def recipe_values(recipe: str) -> dict[str, Any]:
    """Read a recipe; ``auto`` says nothing."""
    if recipe == "auto":
        return {}
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise InvalidInputError(f"recipe: expected a file, found none at {recipe}")
        text = path.read_text(encoding="utf-8")
    elif recipe in RECIPES:
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


def named_values(recipe: str) -> dict[str, Any]:
    """What a run that is resumed with this recipe must have: its name, and a file's values."""
    values = recipe_values(recipe)
    named = {} if recipe == "auto" else {"recipe": Path(recipe).stem}
    return named | (values if recipe.endswith(".toml") else {})


def _automatic_recipe(values: Mapping[str, Any], facts: ImageFacts) -> tuple[str, str]:
    """The recipe that fits images and options, and the reason."""
    start = ""
    if values.get("weights"):
        start = "weights to start from are given"
    elif values.get("pretrained") or (
        values.get("pretrained") is None and has_published_weights(values.get("backbone"))
    ):
        start = "a pre-trained backbone is asked for"
    elif values.get("freeze_backbone") and not values.get("backbone"):
        start = "a frozen backbone must be pre-trained"
    small = (values.get("size") or facts.side) <= SMALL_SIDE and not start
    recipe = "small" if small else "finetune"
    return recipe, (
        f"recipe {recipe}: the images are about {facts.side} px{start and f', and {start}'} "
        f"(small is for up to {SMALL_SIDE} px, from scratch)"
    )


def _complete(config: TrainingConfig, facts: ImageFacts) -> tuple[TrainingConfig, list[str]]:
    """Choose what a configuration leaves open; give the reasons for the larger choices."""
    grey = facts.channels == 1
    where = "a CUDA device" if facts.cuda else "no CUDA device"
    reasons: list[str] = []
    scratch = config.recipe == "small"

    def choose(name: str, value: Any, why: str = "") -> None:
        nonlocal config
        if getattr(config, name) is None:
            config = config.with_values({name: value})
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
        if not facts.cuda and config.recipe != "paper" and not keeps_its_size(config.backbone):
            choose("size", 128, "quicker than the backbone's own size without a CUDA device")
    assert config.backbone is not None  # chosen above
    choose("pretrained", config.weights is None and has_published_weights(config.backbone))
    slow = not facts.cuda and any(kind in config.backbone for kind in _DEPTHWISE)
    choose("precision", "bf16" if facts.bf16 and not slow else "fp32")
    choose("batch_size", 64 if facts.images < 5000 else 128 if facts.images < 20000 else 256)
    if config.freeze_backbone is None:
        choose("freeze_backbone", *_freezes(config, facts))
    # A backbone that stays as it is knows nothing of the classes: a layer above it learns them.
    frozen = config.freeze_backbone
    choose("feature_layer", FEATURE_LAYER if frozen else 0)
    # Enough passes for a few thousand steps, whatever the number of images.
    if config.recipe == "vectors":
        choose("epochs", max(5, min(30, 3_000_000 // max(facts.images, 1))))
    passes = 30 if frozen else (16 if grey or not facts.cuda else 30) if scratch else FINE_TUNING
    few = min(100, -(-80_000 // max(facts.images, 1)))
    choose("epochs", max(passes, few if scratch or frozen else passes))
    share = round(2 / max(facts.images, 4), 3)  # two images are the fewest that can choose
    choose("validation", max(share, 0.1 if facts.images < 20000 else 0.05))
    choose("flip", not grey)
    choose("rotate", 12.0 if grey and scratch else 0.0)
    return config, reasons


def _freezes(config: TrainingConfig, facts: ImageFacts) -> tuple[bool, str]:
    """Whether the backbone stays as it is because training it takes too long, and the reason."""
    if facts.cuda or not (config.pretrained or config.weights):
        return False, "a CUDA device" if facts.cuda else "its first weights are random"
    rate = facts.rate or training_rate(config, facts.channels)
    minutes = facts.images * (config.epochs or FINE_TUNING) / rate / 60
    cost = f"training it takes about {minutes:.0f} minutes at {rate:.1f} images per second"
    if minutes <= MINUTES:
        return False, f"{cost}, as a few steps show; --freeze-backbone is quicker, its codes worse"
    return True, f"{cost}, more than {MINUTES}; --train-backbone does it all the same"


def training_rate(config: TrainingConfig, channels: int) -> float:
    """Images per second of training with a backbone on this processor, by the quickest step."""
    import torch

    from hashlens.models.backbones import create_backbone
    from hashlens.training.module import freeze_first

    assert config.backbone is not None
    # Random weights take as long as others, and need no download.
    backbone = create_backbone(config.backbone, channels=channels, size=config.size)
    network = backbone.module.to(memory_format=torch.channels_last).eval()
    freeze_first(network, config.frozen_share)
    images = torch.rand(_TIMED, *backbone.preprocessing.shape).to(memory_format=torch.channels_last)
    seconds = []
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        for _ in range(3):
            started = time.perf_counter()
            network(images).square().mean().backward()
            seconds.append(time.perf_counter() - started)
    return _TIMED / min(seconds)
