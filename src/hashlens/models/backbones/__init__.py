"""Backbones: networks that turn images into features, by name."""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from hashlens.errors import ModelError
from hashlens.models.backbones.base import Backbone, StartWeights

__all__ = ["NAMES", "Backbone", "StartWeights", "create_backbone"]

NAMES = ("smallcnn", "resnet9", "alexnet", "caffenet", "timm:NAME")


def create_backbone(
    name: str,
    *,
    channels: int = 3,
    size: int | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
) -> Backbone:
    """Build a backbone by its name.

    Parameters
    ----------
    name : str
        ``smallcnn``, ``resnet9``, ``alexnet``, ``caffenet`` or ``timm:NAME``; options follow a
        question mark, as in ``timm:mobilenetv2_100?pad_type=same`` or ``resnet9?width=32``.
    channels : int
        1 for grey images, 3 for colour.
    size : int, optional
        Side of the input in pixels; the backbone's own by default.
    weights : Path, optional
        Starting weights from a file (.safetensors, or a .pth state dict).
    pretrained : bool
        Download published starting weights where no file is given.

    Raises
    ------
    ModelError
        If the name, an option or the weights do not fit.
    """
    if channels not in (1, 3):
        raise ModelError(f"images have 1 or 3 channels, got {channels}")
    base, options = _split_name(name)
    if base.startswith("timm:"):
        from hashlens.models.backbones.timm import create_timm

        return create_timm(
            base.removeprefix("timm:"),
            options,
            channels=channels,
            size=size,
            weights=weights,
            pretrained=pretrained,
        )
    if base == "resnet9" and set(options) <= {"width"}:
        from hashlens.models.backbones.resnet9 import create_resnet9

        _check_from_scratch(base, weights, pretrained)
        return create_resnet9(channels=channels, size=size, width=options.get("width", 64))
    if options:
        raise ModelError(f"{base} takes no options such as {sorted(options)}, got {name!r}")
    if base == "smallcnn":
        from hashlens.models.backbones.smallcnn import create_smallcnn

        _check_from_scratch(base, weights, pretrained)
        return create_smallcnn(channels=channels, size=size)
    if base in ("alexnet", "caffenet"):
        if channels != 3:
            raise ModelError(f"{base} takes colour images (3 channels), got {channels}")
        if base == "alexnet":
            from hashlens.models.backbones.alexnet import create_alexnet

            return create_alexnet(size=size, weights=weights, pretrained=pretrained)
        from hashlens.models.backbones.caffenet import create_caffenet

        return create_caffenet(size=size, weights=weights, pretrained=pretrained)
    raise ModelError(f"no backbone is called {base!r}; known are {', '.join(NAMES)}")


def _split_name(name: str) -> tuple[str, dict[str, Any]]:
    base, _, query = name.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query))
    except ValueError as error:
        raise ModelError(f"{name!r}: options are written NAME?KEY=VALUE&KEY=VALUE") from error
    return base, {key: _literal(value) for key, value in pairs}


def _literal(text: str) -> Any:
    """A number or truth value where the text is one, else the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check_from_scratch(base: str, weights: Path | None, pretrained: bool) -> None:
    if weights is not None or pretrained:
        raise ModelError(
            f"{base} is trained from scratch and has no published weights; leave out --weights "
            "and --pretrained, or use alexnet, caffenet or timm:NAME"
        )
