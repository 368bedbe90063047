"""Codes without labels: a pre-trained backbone's features, and ITQ as the latent layer."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from hashlens.baselines.itq import ITQ
from hashlens.data.source import Source
from hashlens.errors import ModelError, SourceError
from hashlens.machine import keep_freed_memory
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.checkpoint import CONFIG_NAME, save_model, write_atomically
from hashlens.models.description import CARD_NAME, ModelConfig, model_card
from hashlens.models.latent import LatentHashNet
from hashlens.training.data import Inputs, feature_inputs

BACKBONE, SIZE = "timm:mobilenetv2_100", 128
MOST_IMAGES = 50_000


def train_unsupervised(
    source: Source,
    out: Path,
    *,
    bits: int = 48,
    backbone: str | None = None,
    weights: Path | str | None = None,
    size: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> ModelConfig:
    """Make a model from images alone.

    ITQ (Gong, Lazebnik, CVPR 2011) rotates the principal components of the features; both are
    linear, so the result is an ordinary model whose latent layer holds them. It has no classifier.
    """
    started = time.monotonic()
    keep_freed_memory()
    if (out / CONFIG_NAME).exists() and not overwrite:
        raise ModelError(f"{out}: holds a model; choose another --out, or add --overwrite")
    if len(source) < 2 * bits:
        raise SourceError(
            f"{source.spec}: ITQ with {bits} bits needs at least {2 * bits} images, got "
            f"{len(source)}; add images, or use fewer --bits"
        )
    base = create_backbone(
        backbone or BACKBONE,
        size=size or SIZE,
        weights=None if weights is None else Path(weights),
        pretrained=weights is None,
    )
    console = Console(stderr=True, quiet=not progress)
    inputs = _features(source, base, seed=seed, strict=strict, console=console)
    for one in inputs.skipped:
        console.print(f"skipped {one.name}: {one.reason}", highlight=False, markup=False)
    features, _ = inputs.pixels.gather(np.arange(len(inputs.rows)))
    net = _rotated(base, ITQ(bits, seed=seed).fit(features.numpy()))
    training = {
        "method": "ITQ on the features of the backbone, no labels",
        "source": source.spec,
        "images": {"training": len(inputs.rows), "skipped": len(inputs.skipped)},
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in ("hashlens", "torch", "numpy")},
    }
    saved = save_model(
        out,
        net,
        ModelConfig(
            bits=bits,
            feature_dim=base.feature_dim,
            classes=(),
            backbone=base.name,
            preprocessing=base.preprocessing,
            start_origin=base.start.origin,
            start_licence=base.start.licence,
            training=training,
        ),
    )
    write_atomically(out / CARD_NAME, model_card(saved).encode())
    return saved


def _features(
    source: Source, base: Backbone, *, seed: int, strict: bool, console: Console
) -> Inputs:
    """Features of all images, or of as many as the rotation needs."""
    rows = np.arange(len(source))
    if len(rows) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_IMAGES, replace=False))
    with TemporaryDirectory() as folder:
        return feature_inputs(
            source,
            base.preprocessing,
            base.module,
            Path(folder) / "features",
            rows=rows,
            strict=strict,
            console=console,
            write=False,
        )


def _rotated(base: Backbone, method: ITQ) -> LatentHashNet:
    """A network whose latent layer is the method's projection and rotation."""
    net = LatentHashNet(base.module, feature_dim=base.feature_dim, bits=method.bits, classes=0)
    with torch.no_grad():
        net.latent.weight.copy_(torch.from_numpy(np.ascontiguousarray(method.weights.T)))
        net.latent.bias.copy_(torch.from_numpy(method.bias))
    return net
