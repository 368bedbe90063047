"""Pairs of images in a batch: which are similar, and how much each counts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pairs(NamedTuple):
    """All pairs i < j of a batch, p of them."""

    rows: torch.Tensor  # i, int64
    columns: torch.Tensor  # j, int64
    similar: torch.Tensor  # float32: 1 where both have a label in common, else 0
    weights: torch.Tensor  # float32: HashNet's weights, see ``pairs_of``


def common_labels(targets: torch.Tensor) -> torch.Tensor:
    """How many labels any two images have in common, (n, n) float32."""
    if targets.ndim == 1:
        return (targets[:, None] == targets).float()
    labels = targets.float()
    return labels @ labels.T


def pairs_of(targets: torch.Tensor) -> Pairs:
    """Pairs of a batch, from one label per image (n,) or from several (n, classes).

    The weights are those of Z. Cao et al., ICCV 2017: the share of similar and of
    dissimilar pairs is evened out, |S| / |S1| and |S| / |S0|, and a similar pair counts by
    the labels that it has in common, |y_i and y_j| / |y_i or y_j|.
    """
    n = len(targets)
    rows, columns = torch.triu_indices(n, n, offset=1, device=targets.device)
    common = common_labels(targets)
    counts = common.diagonal()
    shared = common[rows, columns]
    similar = (shared > 0).float()
    shared = shared / (counts[rows] + counts[columns] - shared).clamp(min=1)
    total, alike = len(similar), similar.sum()
    weights = torch.where(
        similar > 0, shared * total / alike.clamp(min=1), total / (total - alike).clamp(min=1)
    )
    return Pairs(rows, columns, similar, weights)


def pair_likelihood(products: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Negative log-likelihood per pair, p(similar) = sigmoid(product): log(1 + e^x) - s x."""
    at = products[pairs.rows, pairs.columns]
    return torch.nn.functional.softplus(at) - pairs.similar * at
