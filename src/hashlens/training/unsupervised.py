"""Codes of a shallow method: features of a backbone, or vectors, and a linear latent layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hashlens.baselines import HashMethod, create_method
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, ModelError, SourceError
from hashlens.machine import keep_freed_memory, versions
from hashlens.models.backbones import Backbone, create_backbone, keeps_its_size
from hashlens.models.description import CONFIG_NAME, FeatureScaling
from hashlens.models.export import write_twin
from hashlens.models.latent import LatentHashNet
from hashlens.report.progress import say
from hashlens.training.choice import drawn, scale_features
from hashlens.training.config import TrainingConfig
from hashlens.training.data import feature_inputs, say_what_is_left_out
from hashlens.training.folder import TrainingResult, write_model
from hashlens.training.recipes import vectors_backbone
from hashlens.types import Features

BACKBONE, SIZE = "timm:mobilenetv2_100", 128
MOST_IMAGES = 50_000
OPTIONS = ("bits", "backbone", "weights", "size", "seed", "metric")


def train_unsupervised(
    source: Source,
    out: Path,
    values: Mapping[str, Any],
    *,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
    method: str = "ITQ",
) -> TrainingResult:
    """Make a model from images or vectors alone; ``values`` are options of the configuration.

    ITQ (Gong, Lazebnik, CVPR 2011) rotates the principal components of the features; both are
    linear, so the result is an ordinary model whose latent layer holds them. It has no classifier.
    Another ``method`` of ``hashlens.baselines`` that is linear may take its place; a supervised
    one reads the labels.
    """
    started = time.monotonic()
    config = unsupervised_config(values, source)
    assert config.backbone is not None  # it has a default here
    shallow = create_method(method, config.bits, seed=config.seed)
    keep_freed_memory()
    if (out / CONFIG_NAME).exists() and not overwrite:
        raise ModelError(f"{out}: holds a model; choose another --out, or add --overwrite")
    if len(source) < 2 * config.bits:
        raise SourceError(
            f"{source.spec}: {method} with {config.bits} bits needs at least {2 * config.bits} of "
            f"them, got {len(source)}; add some, or use fewer bits"
        )
    base = create_backbone(
        config.backbone,
        size=config.size,
        weights=None if config.weights is None else Path(config.weights),
        pretrained=config.weights is None and source.vectors is None,
    )
    console = Console(stderr=True, quiet=not progress)
    rows = source.labelled if shallow.supervised else np.arange(len(source))
    rows = drawn(rows, MOST_IMAGES, config.seed)  # as many as the method needs
    inputs = feature_inputs(
        source, base.preprocessing, base.module, None, rows=rows, strict=strict, console=console
    )
    say_what_is_left_out(console, inputs.skipped, source.notes)
    features, _ = inputs.pixels.gather(np.arange(len(inputs.rows)))
    shallow.fit(features.numpy(), source.labels[inputs.rows])
    net = _with_method(base, shallow, method, features.numpy())
    # Vectors are compared as they came: their owner chose the metric.
    scaling: FeatureScaling = "standardised" if source.vectors is None else "none"
    scale_features(net, features, scaling)
    result = TrainingResult(
        out=out,
        config=config.with_values({"backbone": base.name}),
        training_images=len(inputs.rows),
        skipped=tuple(inputs.skipped),
        warnings=source.notes,
        seconds=time.monotonic() - started,
        search={"feature_scaling": scaling, "mode": None},
    )
    training = {
        "method": f"{method} on the features, {'' if shallow.supervised else 'no '}labels",
        "source": source.spec,
        "images": {"training": result.training_images, "skipped": len(result.skipped)},
        "seed": config.seed,
        "seconds": round(result.seconds, 1),
        "versions": versions("hashlens", "torch", "numpy"),
    }
    result = write_model(result, net, base, training)
    say(console, write_twin(out, source))
    return result


def unsupervised_config(values: Mapping[str, Any], source: Source | None = None) -> TrainingConfig:
    """The configuration of a model without labels, which has few options."""
    if odd := sorted(set(values) - set(OPTIONS)):
        raise InvalidInputError(f"--unsupervised does not use {', '.join(odd)}; leave it out")
    size = None if keeps_its_size(values.get("backbone")) else SIZE
    chosen = {"recipe": "unsupervised", "backbone": BACKBONE, "size": size, **values}
    if source is not None and source.vectors is not None:
        chosen["backbone"], chosen["size"] = vectors_backbone(source, values), None
    return TrainingConfig().with_values(chosen)


def _with_method(
    base: Backbone, method: HashMethod, name: str, features: Features
) -> LatentHashNet:
    """A network whose latent layer is the method's projection."""
    width, kernel, phase = base.feature_dim, method.kernel, method.phase
    anchors = 0 if kernel is None else len(kernel)
    net = LatentHashNet(base.module, feature_dim=width, bits=method.bits, classes=0,
                        anchors=anchors, waves=phase is not None)  # fmt: skip
    if kernel is not None:
        weights, bias = method.weights, np.zeros(method.bits, np.float32)
        scale = np.array([kernel.scale], np.float32)
        state = {
            "kernel.anchors": kernel.anchors,
            "kernel.scale": scale,
            "kernel.mean": kernel.mean,
        }
    elif phase is not None:
        weights, bias = method.weights, -method.mean @ method.weights
        state = {"phase": phase}
    else:  # of any method that is linear
        bias, state = method.values(np.zeros((1, width), np.float32))[0], {}
        weights = method.values(np.eye(width, dtype=np.float32)) - bias
    state |= {"latent.weight": weights.T, "latent.bias": bias}
    held = {part: torch.from_numpy(np.ascontiguousarray(value)) for part, value in state.items()}
    net.load_state_dict(net.state_dict() | held)
    some = features[:100]
    expected = method.values(some)
    with torch.inference_mode():
        found = net.eval().from_features(torch.from_numpy(some)).latent.numpy()
    if not np.allclose(found, expected, atol=1e-3 * np.abs(expected).max()):
        raise InvalidInputError(
            f"{name}: a model cannot hold this method, which is neither linear in the features nor "
            f"over a kernel; use hashlens.baselines.create_method({name!r}, bits)"
        )
    return net
