"""Objectives: what a training run minimises, kin in one file; the same latent layer under all.

An objective is a module that is called with a ``LatentOutput``, the targets and F8, and returns
``Losses``. Its constructor takes what it needs of ``bits``, ``classes``, ``label_smoothing``,
``seed`` and ``views``, by these names. The decorator ``@objective(name, description)`` above the
class is all that makes it known to the configuration, the command line and the docs; with
``labels=False`` in it, codes are learned without labels too, and there is no F8 then; with
``views=2`` the second half of a batch is another view of each image in the first; with
``moves_target=True`` what it compares with moves too, so losses of two epochs say nothing of which
is better. Whatever is minimised, bit j of an image's code is latent_j >= 0.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from hashlens.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T", bound=Callable[..., Any])
_DECORATOR = re.compile(r"^@(objective\(.*?\))$", re.MULTILINE | re.DOTALL)
_CLASSES: dict[str, Callable[..., nn.Module]] = {}


class Losses(NamedTuple):
    """What an objective returns: two scalars."""

    total: torch.Tensor  # what is minimised
    classification: torch.Tensor  # the classification loss within it, comparable with chance


class Declaration(NamedTuple):
    """What the decorator of an objective says, and the module that holds it."""

    description: str
    module: str
    labels: bool = True  # whether it cannot do without labels
    views: int = 1  # of each image in a batch
    moves_target: bool = False  # so that losses of two epochs do not compare


def objective(name: str, description: str, **said: Any) -> Callable[[T], T]:
    """Make a class known as an objective; what is no field of ``Declaration`` it is made with."""
    fixed = {key: value for key, value in said.items() if key not in Declaration._fields}

    def register(made: T) -> T:
        _CLASSES[name] = partial(made, **fixed)
        return made

    return register


@cache
def objectives() -> dict[str, Declaration]:
    """Every objective by name, read from the decorators without importing torch."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for text in _DECORATOR.findall(path.read_text(encoding="utf-8")):
            call = cast(ast.Call, ast.parse(text, mode="eval").body)
            name, description = (ast.literal_eval(argument) for argument in call.args)
            named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            said = {key: value for key, value in named.items() if key in Declaration._fields}
            found[name] = Declaration(description, path.stem, **said)
    return dict(sorted(found.items()))


def create_objective(name: str, **offered: Any) -> nn.Module:
    """Create an objective from bits, classes, label_smoothing and seed; import its file alone."""
    if name not in objectives():
        raise InvalidInputError(
            f"objective: expected one of {', '.join(objectives())}, got {name!r}"
        )
    declared = objectives()[name]
    import_module(f"{__name__}.{declared.module}")
    offered["views"] = declared.views
    wanted = inspect.signature(_CLASSES[name]).parameters
    return _CLASSES[name](**{key: value for key, value in offered.items() if key in wanted})


def classification_loss(
    scores: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Softmax loss where an image has one label, mean sigmoid loss where it has several."""
    from torch.nn import functional

    if targets.ndim == 1:
        return functional.cross_entropy(scores, targets, label_smoothing=label_smoothing)
    wanted = targets.to(scores)
    wanted = wanted * (1 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(scores, wanted)


def indicators(targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Which classes each image has, (n, classes) float32, from one label an image or several."""
    from torch.nn import functional

    return (functional.one_hot(targets, classes) if targets.ndim == 1 else targets).float()


def with_classifier(
    total: torch.Tensor, latent: torch.Tensor, targets: torch.Tensor, classifier: nn.Module | None
) -> Losses:
    """Add F8's loss on sigmoid(H), its gradient stopped before H: it predicts, shapes no code."""
    if classifier is None:  # without labels
        return Losses(total, total)
    loss = classification_loss(classifier(latent.sigmoid().detach()), targets)
    return Losses(total + loss, loss)
