"""What every backbone is: a module that makes features, and how its images are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    start: StartWeights
