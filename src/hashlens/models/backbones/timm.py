"""Any timm model, written timm:NAME: its pooled features before the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch
from torch import nn

from hashlens.data.hub import one_try
from hashlens.data.preprocessing import Preprocessing
from hashlens.errors import ModelError, first_line, needs_extra
from hashlens.models.backbones import (
    Backbone,
    StartWeights,
    read_metadata,
    read_weights,
    register_backbone,
    squashed,
    start_from_file,
)

FILTERS = ("bilinear", "bicubic", "lanczos")
# What a model's name may ask for. A name may come with somebody else's model: other arguments of
# timm open files (`checkpoint_path`) or addresses.
OPTIONS = (
    "act_layer", "drop_path_rate", "drop_rate", "dynamic_img_size", "global_pool", "img_size",
    "norm_layer", "output_stride", "pad_type", "patch_size", "window_size",
)  # fmt: skip
_TINY = 64  # px: enough for most models to state their width


@register_backbone
def timm(
    *,
    model: str,
    channels: int,
    size: int | None,
    weights: Path | None,
    pretrained: bool,
    **options: Any,
) -> Backbone:
    """Build a timm model without its classifier.

    A safetensors file may state ``mean``, ``std``, ``input`` (pixels) and ``pad_type`` in its
    metadata; they then hold for the model, unless the name or the call states its own.
    """
    refused = sorted(
        name
        for name, value in options.items()
        if name not in OPTIONS or not isinstance(value, str | int | float)
    )
    if refused:
        raise ModelError(
            f"timm:{model} takes the options {', '.join(OPTIONS)}, got {', '.join(refused)}"
        )
    with needs_extra(f"the backbone timm:{model}", "train"):
        library: Any = import_module("timm")
    if not library.is_model(model.split(".")[0]):
        near = ", ".join(library.list_models(f"*{model.split('_')[0]}*")[:5])
        raise ModelError(f"timm has no model {model!r}" + (f"; near it are {near}" if near else ""))
    stated: dict[str, Any] = {}
    if weights is not None:
        read_weights(weights)  # a clear message before timm's own
        metadata = read_metadata(weights)
        stated = {"file": str(weights), **_stated_by_file(metadata)}
        if "pad_type" in metadata:
            options.setdefault("pad_type", metadata["pad_type"])
    published = library.get_pretrained_cfg(model)
    fixed = bool(published and published.fixed_input_size)
    try:
        with one_try() if pretrained and weights is None else nullcontext():
            module: nn.Module = library.create_model(
                model,
                pretrained=pretrained or weights is not None,
                num_classes=0,
                in_chans=channels,
                pretrained_cfg_overlay=stated or None,
                **({"img_size": size} if size and fixed else {}),
                **options,
            )
    except OSError as error:  # the hub's errors are among them
        where = published.hf_hub_id if published else None
        raise ModelError(
            f"timm:{model}: its published weights are not on this machine and could not be fetched "
            f"({type(error).__name__}); with a connection, download model.safetensors of "
            f"https://huggingface.co/{where or 'timm'} and name it with --weights, or start from "
            "scratch with --no-pretrained"
        ) from error
    except Exception as error:  # timm raises errors of every kind
        raise ModelError(
            f"timm:{model} could not be built ({first_line(error)}); check the options in its "
            "name, give fitting weights with --weights FILE, or start from scratch with "
            "--no-pretrained"
        ) from error
    config = library.data.resolve_model_data_config(module)
    filter_ = config["interpolation"] if config["interpolation"] in FILTERS else "bicubic"
    side = size or int(config["input_size"][-1])
    preprocessing = squashed(side, channels, config["mean"], config["std"], interpolation=filter_)
    name = f"timm:{model}" + (f"?{urlencode(sorted(options.items()))}" if options else "")
    width = _width(module, name, preprocessing, fixed)
    start = StartWeights()
    if weights is not None:
        start = start_from_file(weights)
    elif pretrained:
        settings: Any = module.pretrained_cfg
        tag = settings.get("tag")
        start = StartWeights(
            f"timm {model}" + (f".{tag}" if tag and "." not in model else ""),
            str(settings.get("license") or "not stated"),
        )
    return Backbone(name, module, width, preprocessing, start)


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


def _width(module: nn.Module, name: str, preprocessing: Preprocessing, fixed: bool) -> int:
    """Width of the features that come out; timm's ``num_features`` is another for many models."""
    size, training = preprocessing.size, module.training
    module.eval()
    for side in {size} if fixed or size <= _TINY else (_TINY, size):
        try:
            with torch.no_grad():
                features = module(torch.zeros(1, preprocessing.channels, side, side))
            break
        except Exception as error:  # too small for this model; each says so in its own way
            if side == size:
                raise ModelError(
                    f"{name} does not take images of {size} px ({first_line(error)}); use another "
                    "--size"
                ) from error
    module.train(training)
    if features.ndim != 2:
        raise ModelError(
            f"{name} gives features of shape {tuple(features.shape[1:])} per image, expected one "
            "vector; use another timm model"
        )
    return int(features.shape[1])
