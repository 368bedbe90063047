"""Scores of the validation images, and warnings where nothing is learned."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hashlens.evaluation.metrics import expected_average_precision

MAP_QUERIES = 2000
"""Most validation images that are queries; all are the database."""


class ValidationScores(NamedTuple):
    """Scores of one epoch on the validation images.

    Attributes
    ----------
    map : float
        Mean average precision of the codes, each image searched among all others, over the whole
        ranking, in expectation over ties.
    accuracy : float
        Share of images whose highest score is their class (one of their labels).
    loss : float
        Classification loss, in nats.
    stuck_bits : int
        Bits that are 0, or 1, for every image.
    images : int
        Images that were counted.
    """

    map: float
    accuracy: float
    loss: float
    stuck_bits: int
    images: int


def code_map(bits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean average precision of codes, each image searched among all others."""
    images, width = bits.shape
    if images < 2:
        return 0.0
    signs = bits.float() * 2 - 1
    labels = targets if targets.ndim == 2 else torch.nn.functional.one_hot(targets)
    labels = labels.float()
    queries = np.unique(np.linspace(0, images - 1, min(images, MAP_QUERIES)).round().astype(int))
    total = 0.0
    for chunk in np.array_split(queries, -(-len(queries) // 500)):
        part = torch.from_numpy(chunk)
        distances = ((width - signs[part] @ signs.T) / 2).round().long()
        relevant = (labels[part] @ labels.T > 0).long()
        kept = torch.ones_like(relevant)
        kept[torch.arange(len(part)), part] = 0  # a query does not find itself
        sizes = torch.zeros(len(part), width + 1, dtype=torch.int64)
        good = sizes.clone()
        sizes.scatter_add_(1, distances, kept)
        good.scatter_add_(1, distances, kept * relevant)
        total += float(expected_average_precision(sizes.numpy(), good.numpy(), images).sum())
    return total / len(queries)


def validation_scores(
    latent: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
) -> ValidationScores:
    """Score a model's output for the validation images."""
    bits = latent >= 0
    ones = bits.float().mean(dim=0)
    best = scores.argmax(dim=1)
    right = best == targets if targets.ndim == 1 else targets.gather(1, best[:, None])[:, 0]
    return ValidationScores(
        map=code_map(bits, targets),
        accuracy=float(right.float().mean()),
        loss=float(losses.mean()),
        stuck_bits=int(((ones == 0) | (ones == 1)).sum()),
        images=len(latent),
    )


def chance_loss(targets: NDArray[np.int64] | NDArray[np.bool_], balanced: bool = False) -> float:
    """Loss of the best constant prediction, where a run that learns nothing ends."""
    if targets.ndim == 1:
        counts = np.bincount(targets).astype(np.float64)
        shares = counts[counts > 0] / counts.sum()
        return math.log(len(shares)) if balanced else float(-(shares * np.log(shares)).sum())
    rates = np.clip(targets.mean(axis=0, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)).mean())


def chance_warning(loss: float, chance: float, epoch: int, epochs: int) -> str | None:
    """A warning if a loss has not left chance."""
    if epoch < min(3, epochs) or (math.isfinite(loss) and loss < 0.97 * chance):
        return None
    if not loss <= 3 * chance:  # or not a number
        return (
            f"the loss is {loss:.4g} after {epoch} epoch(s), and {chance:.3f} by chance: the rate "
            "is too high; try a tenth of --learning-rate, or --precision fp32"
        )
    return (
        f"the loss {loss:.3f} is still at chance ({chance:.3f}) after {epoch} epoch(s): nothing is "
        "learned yet; try another --learning-rate (three times higher, then a third), "
        "--latent-normalisation if it is off, --recipe auto, and check the labels"
    )


def stuck_warning(stuck_bits: int, bits: int) -> str | None:
    """A warning if bits are the same for every validation image."""
    if stuck_bits == 0:
        return None
    return (
        f"{stuck_bits} of {bits} bits are the same for every validation image and carry no "
        "information: "
        "try --latent-normalisation if it is off, --objective ssdh (it balances bits), "
        "fewer --bits, or more --epochs"
    )
