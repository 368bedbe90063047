"""Codes without labels: a pre-trained backbone's features, and ITQ as the latent layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hashlens.baselines.itq import ITQ
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, ModelError, SourceError
from hashlens.machine import keep_freed_memory, versions
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.description import CONFIG_NAME
from hashlens.models.export import write_twin
from hashlens.models.latent import LatentHashNet
from hashlens.training.choice import scale_features
from hashlens.training.config import TrainingConfig
from hashlens.training.data import Inputs, feature_inputs
from hashlens.training.folder import TrainingResult, write_model

BACKBONE, SIZE = "timm:mobilenetv2_100", 128
MOST_IMAGES = 50_000
OPTIONS = ("bits", "backbone", "weights", "size", "seed")


def train_unsupervised(
    source: Source,
    out: Path,
    values: Mapping[str, Any],
    *,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Make a model from images alone; ``values`` are options of the configuration.

    ITQ (Gong, Lazebnik, CVPR 2011) rotates the principal components of the features; both are
    linear, so the result is an ordinary model whose latent layer holds them. It has no classifier.
    """
    started = time.monotonic()
    config = unsupervised_config(values)
    assert config.backbone is not None  # it has a default here
    keep_freed_memory()
    if (out / CONFIG_NAME).exists() and not overwrite:
        raise ModelError(f"{out}: holds a model; choose another --out, or add --overwrite")
    if len(source) < 2 * config.bits:
        raise SourceError(
            f"{source.spec}: ITQ with {config.bits} bits needs at least {2 * config.bits} images, "
            f"got {len(source)}; add images, or use fewer --bits"
        )
    base = create_backbone(
        config.backbone,
        size=config.size,
        weights=None if config.weights is None else Path(config.weights),
        pretrained=config.weights is None,
    )
    console = Console(stderr=True, quiet=not progress)
    inputs = _features(source, base, seed=config.seed, strict=strict, console=console)
    for one in inputs.skipped:
        console.print(f"skipped {one.name}: {one.reason}", highlight=False, markup=False)
    for note in source.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    features, _ = inputs.pixels.gather(np.arange(len(inputs.rows)))
    net = _rotated(base, ITQ(config.bits, seed=config.seed).fit(features.numpy()))
    scale_features(net, features, "standardised")
    result = TrainingResult(
        out=out,
        config=config.with_values({"backbone": base.name}),
        best_epoch=0,
        history=(),
        training_images=len(inputs.rows),
        validation_images=0,
        skipped=tuple(inputs.skipped),
        warnings=source.notes,
        seconds=time.monotonic() - started,
        search={"feature_scaling": "standardised", "mode": None},
    )
    training = {
        "method": "ITQ on the features of the backbone, no labels",
        "source": source.spec,
        "images": {"training": result.training_images, "skipped": len(result.skipped)},
        "seed": config.seed,
        "seconds": round(result.seconds, 1),
        "versions": versions("hashlens", "torch", "numpy"),
    }
    result = write_model(result, net, base, training)
    console.print(write_twin(out, source), highlight=False, markup=False, soft_wrap=True)
    return result


def unsupervised_config(values: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a model without labels, which has few options."""
    if odd := sorted(set(values) - set(OPTIONS)):
        raise InvalidInputError(f"--unsupervised does not use {', '.join(odd)}; leave it out")
    return TrainingConfig().with_values(
        {"recipe": "unsupervised", "backbone": BACKBONE, "size": SIZE, **values}
    )


def _features(
    source: Source, base: Backbone, *, seed: int, strict: bool, console: Console
) -> Inputs:
    """Features of all images, or of as many as the rotation needs."""
    rows = np.arange(len(source))
    if len(rows) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_IMAGES, replace=False))
    return feature_inputs(
        source, base.preprocessing, base.module, None, rows=rows, strict=strict, console=console
    )


def _rotated(base: Backbone, method: ITQ) -> LatentHashNet:
    """A network whose latent layer is the method's projection and rotation."""
    net = LatentHashNet(base.module, feature_dim=base.feature_dim, bits=method.bits, classes=0)
    with torch.no_grad():
        net.latent.weight.copy_(torch.from_numpy(np.ascontiguousarray(method.weights.T)))
        net.latent.bias.copy_(torch.from_numpy(method.bias))
    return net
