"""Pairs of images in a batch: which are similar, and how much each counts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pairs(NamedTuple):
    """All pairs i < j of a batch, p of them."""

    at: tuple[torch.Tensor, torch.Tensor]  # i and j, int64
    similar: torch.Tensor  # float32: 1 where both have a label in common, else 0
    weights: torch.Tensor  # float32: HashNet's weights, see ``pairs_of``


def pair_indices(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows i and columns j, i < j, of all pairs of images."""
    rows, columns = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    return rows, columns


def pairs_of(targets: torch.Tensor) -> Pairs:
    """Pairs of a batch, from one label per image (n,) or from several (n, classes).

    The weights are those of Z. Cao et al., ICCV 2017: the share of similar and of
    dissimilar pairs is evened out, |S| / |S1| and |S| / |S0|, and a similar pair counts by
    the labels that it has in common, |y_i and y_j| / |y_i or y_j|.
    """
    rows, columns = pair_indices(targets)
    if targets.ndim == 1:
        common = (targets[:, None] == targets).float()
    else:
        common = targets.float() @ targets.float().T
    counts = common.diagonal()
    shared = common[rows, columns]
    similar = (shared > 0).float()
    shared = shared / (counts[rows] + counts[columns] - shared).clamp(min=1)
    total, alike = len(similar), similar.sum()
    weights = torch.where(
        similar > 0, shared * total / alike.clamp(min=1), total / (total - alike).clamp(min=1)
    )
    return Pairs((rows, columns), similar, weights)


def pair_likelihood(products: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Negative log-likelihood per pair, p(similar) = sigmoid(product): log(1 + e^x) - s x."""
    at = products[pairs.at]
    return torch.nn.functional.softplus(at) - pairs.similar * at


def pair_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over pairs; 0 of a single image, which has none."""
    return values.sum() / max(1, len(values))
