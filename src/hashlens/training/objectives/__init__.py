"""Objectives: what a training run minimises. One file each, the same latent layer under all.

An objective is a module that is called with a ``LatentOutput``, the targets, and F8, and returns
``Losses``. Whatever it is, an image's code is read as bit j = latent_j >= 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hashlens.errors import InvalidInputError
from hashlens.training.config import OBJECTIVES
from hashlens.training.objectives.cnnh import Cnnh
from hashlens.training.objectives.csq import CentralSimilarity
from hashlens.training.objectives.greedyhash import GreedyHash
from hashlens.training.objectives.latent import Latent
from hashlens.training.objectives.ssdh import Ssdh

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create_objective"]


def create_objective(
    name: str, *, bits: int, classes: int, label_smoothing: float = 0.0, seed: int = 0
) -> nn.Module:
    """Create an objective by name.

    Parameters
    ----------
    name : {"latent", "ssdh", "greedyhash", "csq", "cnnh", "cnnh+"}
        Which one.
    bits : int
        Length of a code.
    classes : int
        Number of classes.
    label_smoothing : float
        Share of a label spread over all classes.
    seed : int
        Seeds what an objective draws (the hash centres of ``csq``, the target codes of ``cnnh``).

    Raises
    ------
    InvalidInputError
        For an unknown name.
    """
    known: dict[str, Callable[[], nn.Module]] = {
        "latent": lambda: Latent(label_smoothing),
        "ssdh": lambda: Ssdh(label_smoothing),
        "greedyhash": lambda: GreedyHash(label_smoothing),
        "csq": lambda: CentralSimilarity(bits, classes, seed),
        "cnnh": lambda: Cnnh(bits, classes, seed, with_labels=False),
        "cnnh+": lambda: Cnnh(bits, classes, seed, with_labels=True),
    }
    if name not in known:
        raise InvalidInputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return known[name]()
