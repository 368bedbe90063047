"""The classification loss that the objectives share: softmax, or sigmoid for several labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class Losses(NamedTuple):
    """What an objective returns.

    Attributes
    ----------
    total : scalar tensor
        What is minimised.
    classification : scalar tensor
        The classification loss within it, comparable with chance.
    scores : tensor of shape (n, classes)
        The class scores the loss was computed from.
    """

    total: torch.Tensor
    classification: torch.Tensor
    scores: torch.Tensor


def classification_loss(
    scores: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Softmax loss for one label an image, mean sigmoid loss for several."""
    if targets.ndim == 1:
        return functional.cross_entropy(scores, targets, label_smoothing=label_smoothing)
    wanted = targets.to(scores)
    wanted = wanted * (1 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(scores, wanted)
