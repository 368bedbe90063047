"""Backbones: networks that turn images into features, by name.

Each other file here but ``weights`` holds one backbone: a function named like the file. The first
line of the file's docstring says what it is. Both are read without importing torch.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from hashlens.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from hashlens.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class StartWeights:
    """Where a network's first weights came from, for the model card.

    Attributes
    ----------
    origin : str
        "random", a file's name, or the name of published weights.
    licence : str
        Licence of those weights as their publisher states it; "none needed" for random ones,
        "not stated" where the file does not say.
    """

    origin: str = "random"
    licence: str = "none needed"


@dataclass(frozen=True)
class Backbone:
    """A network without its head.

    Attributes
    ----------
    name : str
        Rebuilds the same structure through ``create_backbone``; holds every option.
    module : Module
        Images (n, channels, size, size) to features (n, feature_dim).
    feature_dim : int
        Width d of the features.
    preprocessing : Preprocessing
        How an image becomes the module's input.
    start : StartWeights
        Where its weights came from.
    """

    name: str
    module: nn.Module
    feature_dim: int
    preprocessing: Preprocessing
    start: StartWeights = StartWeights()


_BUILDERS: dict[str, Callable[..., Backbone]] = {}


def register_backbone(build: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """Decorator for the function that builds a backbone; the function's name is the backbone's.

    Its keyword parameters say what the backbone takes. ``size`` is the side of the input in
    pixels, or None. Without ``channels`` it takes colour images only; without ``weights`` (a file
    or None) and ``pretrained`` (download published weights) it starts from scratch only;
    ``model`` is what follows a colon in the name. All others are its options, written
    ``NAME?KEY=VALUE``; ``**options`` takes any.
    """
    _BUILDERS[build.__name__] = build
    return build


@cache
def describe_backbones() -> Mapping[str, str]:
    """Every backbone as it is written, such as timm:NAME, and a line that says what it is."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == path.stem:
                named = any(argument.arg == "model" for argument in node.args.kwonlyargs)
                text = (ast.get_docstring(tree) or "").partition("\n")[0]
                found[path.stem + ":NAME" * named] = text
    return found


def has_published_weights(name: str) -> bool:
    """Whether starting weights of a backbone can be downloaded."""
    return "pretrained" in inspect.signature(_builder(name)).parameters


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
        One of ``describe_backbones()``; options follow a question mark, as in
        ``resnet9?width=32`` or ``timm:mobilenetv2_100?pad_type=same``.
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
    build = _builder(name)
    base, _, query = name.partition("?")
    base, colon, model = base.partition(":")
    takes = inspect.signature(build).parameters
    if channels not in (1, 3):
        raise ModelError(f"images have 1 or 3 channels, got {channels}")
    if "channels" not in takes and channels != 3:
        raise ModelError(f"{base} takes colour images (3 channels), got {channels}")
    if bool(model) != ("model" in takes) or (colon and not model):
        expected = f"a name after a colon, as in {base}:NAME" if "model" in takes else "no colon"
        raise ModelError(f"{base} is written with {expected}, got {name!r}")
    if "weights" not in takes and (weights is not None or pretrained):
        raise ModelError(
            f"{base} is trained from scratch and has no published weights; leave out --weights "
            "and --pretrained, or use another backbone, such as timm:NAME"
        )
    if "pretrained" not in takes and pretrained and weights is None:
        raise ModelError(
            f"no download is known for the weights of {base}; give a file with --weights FILE, "
            "write --no-pretrained, or use another backbone, such as alexnet"
        )
    asked = {
        "channels": channels,
        "size": size,
        "model": model,
        "weights": weights,
        "pretrained": pretrained,
    }
    options = _options(name, query)
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    known = sorted(set(takes) - set(asked))
    if not (free or set(options) <= set(known)) or set(options) & set(asked):
        some = "no option of this name" if free else f"only {known}" if known else "no options"
        raise ModelError(f"{base} takes {some}, got {name!r}")
    return build(**{key: asked[key] for key in takes if key in asked}, **options)


def _builder(name: str) -> Callable[..., Backbone]:
    base = name.partition("?")[0].partition(":")[0]
    if base not in _BUILDERS and {base, f"{base}:NAME"} & set(describe_backbones()):
        import_module(f"{__name__}.{base}")
    if base not in _BUILDERS:
        known = ", ".join(describe_backbones())
        raise ModelError(f"no backbone is called {base!r}; known are {known}")
    return _BUILDERS[base]


def _options(name: str, query: str) -> dict[str, Any]:
    """Options of a name; each a number or truth value where its text is one."""
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query))
    except ValueError as error:
        raise ModelError(f"{name!r}: options are written NAME?KEY=VALUE&KEY=VALUE") from error
    options: dict[str, Any] = {}
    for key, text in pairs:
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options
