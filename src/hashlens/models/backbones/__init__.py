"""Backbones: networks that turn images into features, by name; and their starting weights.

A backbone is a function with the decorator ``@register_backbone``, of its name, in a file here,
next to its kin. The names are read without importing torch.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from hashlens.errors import ModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hashlens.data.preprocessing import Preprocessing, VectorInput


@dataclass(frozen=True)
class StartWeights:
    """Where a network's first weights came from, for the model card.

    The licence is what their publisher states; "none needed" for random weights, "not stated" where
    the file does not say.
    """

    origin: str = "random"
    licence: str = "none needed"


@dataclass(frozen=True)
class Backbone:
    """A network without its head: images (n, channels, size, size) to features (n, feature_dim).

    ``name`` holds every option and rebuilds the same structure through ``create_backbone``.
    """

    name: str
    module: nn.Module
    feature_dim: int
    preprocessing: Preprocessing | VectorInput
    start: StartWeights = StartWeights()


_BUILDERS: dict[str, Callable[..., Backbone]] = {}


def register_backbone(build: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """Decorator for the function that builds a backbone; the function's name is the backbone's.

    Its keyword parameters say what the backbone takes. ``size`` is the side of the input in
    pixels, or None; None as its default keeps recipes from choosing one. Without ``channels`` it
    takes colour images only; without ``weights`` (a file or None) and ``pretrained`` (download
    published weights) it starts from scratch only; ``model`` is what follows a colon in the name.
    All others are its options, written ``NAME?KEY=VALUE``; ``**options`` takes any.
    """
    _BUILDERS[build.__name__] = build
    return build


@cache
def describe_backbones() -> Mapping[str, str]:
    """Every backbone as it is written, such as timm:NAME, and the module that holds it."""
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            decorators = getattr(node, "decorator_list", ())
            if isinstance(node, ast.FunctionDef) and "register_backbone" in map(
                ast.unparse, decorators
            ):
                named = any(argument.arg == "model" for argument in node.args.kwonlyargs)
                found[node.name + ":NAME" * named] = path.stem
    return dict(sorted(found.items()))


def has_published_weights(name: str | None) -> bool:
    """Whether starting weights of a backbone can be downloaded."""
    return name is not None and "pretrained" in inspect.signature(_builder(name)).parameters


def keeps_its_size(name: str | None) -> bool:
    """Whether a backbone keeps its own size of input unless a user names another."""
    size = inspect.signature(_builder(name)).parameters.get("size") if name else None
    return size is not None and size.default is None


def vectors_name(taken: VectorInput) -> str:
    """The name, with its options, of the backbone that stands for ready vectors."""
    return f"vectors?width={taken.width}&metric={taken.metric}"


def squashed(
    size: int, channels: int, mean: Sequence[float], std: Sequence[float], **options: Any
) -> Preprocessing:
    """The whole image as a square; of grey images the mean of the colours' mean and deviation."""
    from hashlens.data.preprocessing import Preprocessing

    if channels == 1:
        return Preprocessing(size, 1, (sum(mean) / len(mean),), (sum(std) / len(std),), **options)
    return Preprocessing(size, 3, tuple(mean), tuple(std), **options)


def create_backbone(
    name: str,
    *,
    channels: int = 3,
    size: int | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
) -> Backbone:
    """Build a backbone by its name, which may have options, as ``resnet9?width=32`` has.

    ``size`` is the side of the input in pixels, by default the backbone's own. ``weights`` is a
    file to start from; where there is none, ``pretrained`` downloads those that were published.
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
            "and write --no-pretrained, or use another backbone, such as timm:NAME"
        )
    if "pretrained" not in takes and pretrained and weights is None:
        raise ModelError(
            f"no download is known for the weights of {base}; give a file with --weights FILE, "
            "write --no-pretrained, or use another backbone, such as alexnet"
        )
    asked: dict[str, Any] = {"channels": channels, "size": size, "model": model}
    asked |= {"weights": weights, "pretrained": pretrained}
    options = _options(name, query)
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    known = sorted(set(takes) - set(asked))
    if not (free or set(options) <= set(known)) or set(options) & set(asked):
        some = "no option of this name" if free else f"only {known}" if known else "no options"
        raise ModelError(f"{base} takes {some}, got {name!r}")
    return build(**{key: asked[key] for key in takes if key in asked}, **options)


def _builder(name: str) -> Callable[..., Backbone]:
    base, known = name.partition("?")[0].partition(":")[0], describe_backbones()
    if base not in _BUILDERS and (module := known.get(base, known.get(f"{base}:NAME"))):
        import_module(f"{__name__}.{module}")
    if base not in _BUILDERS:
        raise ModelError(f"no backbone is called {base!r}; known are {', '.join(known)}")
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pickle

    from safetensors import SafetensorError

    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give a .safetensors or .pth file")
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path}: not a readable weights file ({first_line(error)}); it must be a whole "
            ".safetensors or a .pth that torch.load(weights_only=True) accepts"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or one of PyTorch, without running code."""
    import torch
    from safetensors import safe_open
    from torch import Tensor

    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path}: expected a state dict (names to tensors), got {type(state).__name__}; "
            "save it with torch.save(model.state_dict(), FILE)"
        )
    return dict(state)


def load_weights(module: nn.Module, path: Path, *, head: tuple[str, ...]) -> StartWeights:
    """Load a state dict into a backbone, leaving out the ImageNet head; return its origin."""
    cleaned = {
        name.removeprefix("module.").removeprefix("backbone."): value
        for name, value in read_weights(path).items()
    }
    wanted = module.state_dict()
    missing = [n for n in wanted if n not in cleaned and not n.endswith("num_batches_tracked")]
    extra = [name for name in cleaned if name not in wanted and not name.startswith(head)]
    wrong = [n for n in wanted if n in cleaned and cleaned[n].shape != wanted[n].shape]
    if missing or wrong or extra:
        parts = [("missing", missing), ("of another shape", wrong), ("not known", extra)]
        found = "; ".join(f"{len(n)} {what} (first: {n[0]})" for what, n in parts if n)
        raise ModelError(
            f"{path}: these weights do not fit the backbone: {found}; "
            "choose the backbone that they were trained with"
        )
    module.load_state_dict({n: v for n, v in cleaned.items() if n in wanted}, strict=False)
    return start_from_file(path)


def start_from_file(path: Path) -> StartWeights:
    """Origin and licence of a weights file, as its own metadata states them."""
    metadata = read_metadata(path)
    source = metadata.get("source")
    origin = f"{path.name} ({source})" if source else path.name
    stated = metadata.get("license") or metadata.get("licence")
    return StartWeights(origin, stated or (f"as stated by: {source}" if source else "not stated"))


def read_metadata(path: Path) -> dict[str, str]:
    """Text metadata of a safetensors file; empty for other files."""
    from safetensors import safe_open

    with _reading(path):
        if path.suffix != ".safetensors":
            return {}
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
