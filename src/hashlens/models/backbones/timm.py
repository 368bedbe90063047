"""Any timm model as a backbone: its pooled features before the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from torch import nn

from hashlens.data.preprocessing import Preprocessing
from hashlens.errors import MissingExtraError, ModelError
from hashlens.models.backbones.base import (
    Backbone,
    StartWeights,
    read_metadata,
    read_weights,
    start_from_file,
)

FILTERS = ("bilinear", "bicubic", "lanczos")


def create_timm(
    name: str,
    options: Mapping[str, Any],
    *,
    channels: int,
    size: int | None,
    weights: Path | None,
    pretrained: bool,
) -> Backbone:
    """Build a timm model without its classifier.

    A safetensors file may state ``mean``, ``std``, ``input`` (pixels) and ``pad_type`` in its
    metadata; they then hold for the model, unless the name or the call states its own.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"the backbone timm:{name}", "train") from error
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ModelError(f"timm has no model {name!r}" + (f"; near it are {near}" if near else ""))
    metadata: dict[str, str] = {}
    arguments: dict[str, Any] = dict(options)
    overlay: dict[str, Any] = {}
    if weights is not None:
        read_weights(weights)  # a clear message before timm's own
        metadata = read_metadata(weights)
        overlay = {"file": str(weights), **_stated_by_file(metadata)}
        if "pad_type" in metadata:
            arguments.setdefault("pad_type", metadata["pad_type"])
    module, config = _create(
        timm, name, arguments, overlay, channels, size, pretrained or weights is not None
    )
    start = StartWeights()
    if weights is not None:
        start = start_from_file(weights)
    elif pretrained:
        tag = module.pretrained_cfg.get("tag")
        start = StartWeights(
            f"timm {name}" + (f".{tag}" if tag and "." not in name else ""),
            str(module.pretrained_cfg.get("license") or "not stated"),
        )
    full_name = f"timm:{name}" + (f"?{urlencode(sorted(arguments.items()))}" if arguments else "")
    return Backbone(
        full_name, module, int(module.num_features), _preprocessing(config, channels, size), start
    )


def _stated_by_file(metadata: Mapping[str, str]) -> dict[str, Any]:
    stated: dict[str, Any] = {}
    try:
        for key in ("mean", "std"):
            if key in metadata:
                stated[key] = tuple(float(value) for value in metadata[key].split(","))
        if "input" in metadata:
            side = int(metadata["input"])
            stated["input_size"] = (3, side, side)
    except ValueError as error:
        raise ModelError(
            f"the weights file's metadata is not understood ({error}); expected numbers in "
            "mean, std and input"
        ) from error
    return stated


def _create(
    timm: Any,
    name: str,
    arguments: Mapping[str, Any],
    overlay: Mapping[str, Any],
    channels: int,
    size: int | None,
    pretrained: bool,
) -> tuple[Any, dict[str, Any]]:
    """The module without its classifier, and timm's data configuration."""
    fixed = timm.get_pretrained_cfg(name)
    extra = {"img_size": size} if size and fixed and fixed.fixed_input_size else {}
    try:
        module: nn.Module = timm.create_model(
            name,
            pretrained=pretrained,
            num_classes=0,
            in_chans=channels,
            pretrained_cfg_overlay=dict(overlay) or None,
            **extra,
            **arguments,
        )
    except Exception as error:  # timm and the hub raise of every kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"timm:{name} could not be built ({reason}); check the name's options, give "
            "fitting weights with --weights FILE, or leave out --pretrained"
        ) from error
    return module, dict(timm.data.resolve_model_data_config(module))


def _preprocessing(config: Mapping[str, Any], channels: int, size: int | None) -> Preprocessing:
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Preprocessing(
        size=size or int(config["input_size"][-1]),
        channels=3 if channels == 3 else 1,
        mean=mean,
        std=std,
        resize="squash",
        interpolation=config["interpolation"] if config["interpolation"] in FILTERS else "bicubic",
    )
