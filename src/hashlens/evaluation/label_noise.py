"""Which labels are likely wrong: what the other images say about each image's own label.

No image's label counts for the image itself: the linear classifier that scores it leaves it out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.types import Features, Ids

ClassScores = NDArray[np.float64]

_PENALTIES = 10.0 ** np.arange(-4, 3)  # tried, as multiples of the mean variance of a direction
_LEAST_FREEDOM = 1e-6  # 1 - leverage of an image that the fit passes through
_LEAST_VARIANCE = 1e-12  # for features that are all alike
# Chosen on training images with labels changed (benchmarks/label_noise.py): of few images, whose
# scores vary, a plain majority calls a third of right labels wrong, and this a tenth.
_CLEARLY = 3.0


class ConfusedPair(NamedTuple):
    """Images labelled one class that look like another."""

    label: int
    looks_like: int
    images: int  # images with this label that look most like the other class
    share: float  # their share of all images with this label


class Suspicion(NamedTuple):
    """How doubtful each label is."""

    # (n,): higher is more doubtful; above 0, another class fits better than the label
    scores: NDArray[np.float64]
    looks_like: NDArray[np.int64]  # (n,): the other class that fits best
    # (n,): that class scores three times as high as the label, and fits this image at least as
    # well as its own images on average
    likely_wrong: NDArray[np.bool_]
    order: Ids  # (n,): images, the most doubtful first; ties by position


def leave_one_out_scores(features: Features, labels: Any, classes: int) -> ClassScores:
    """How much each image looks like each class, by a classifier fitted without that image.

    Ridge regression of features onto one column per class, 1 for the image's own. For each image
    the answer of the fit to all others follows in closed form from the fit to all: with fitted
    value f, target y and leverage h it is y - (y - f) / (1 - h) (Allen 1974, PRESS). The penalty
    with the least squared error of these answers is taken.
    """
    values = _checked_labels(labels, classes)
    if features.ndim != 2 or len(features) != len(values) or len(values) < 2:
        raise InvalidInputError(
            f"features: expected ({len(values)}, d) for at least 2 labels, got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise InvalidInputError("features: expected finite numbers, got NaN or infinity")
    targets = np.eye(classes)[values]
    shares = targets.mean(axis=0)
    targets -= shares
    rotated = features.astype(np.float64)
    rotated -= rotated.mean(axis=0)
    variances, directions = np.linalg.eigh(rotated.T @ rotated)
    rotated = rotated @ directions
    scale = max(float(variances.mean()), _LEAST_VARIANCE)
    weights = 1 / (np.maximum(variances, 0)[:, None] + scale * _PENALTIES)  # (d, penalties)
    products = rotated.T @ targets
    fits = [rotated @ (column[:, None] * products) for column in weights.T]
    leverages = 1 / len(values) + np.square(rotated, out=rotated) @ weights
    best, least = targets, np.inf
    for fitted, leverage in zip(fits, leverages.T, strict=True):
        errors = (targets - fitted) / np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
        loss = float(np.square(errors).sum())
        if loss < least:
            best, least = targets - errors, loss
    return np.asarray(best + shares, np.float64)


def suspicion(scores: ClassScores, labels: Any) -> Suspicion:
    """Rank labels by how much better another class fits.

    A class's scores are first measured against what its own images reach on average, so that
    images of rare or varied classes are not suspect for that alone (after Northcutt, Jiang and
    Chuang, "Confident learning", 2021, whose class thresholds these averages are).
    """
    values = _checked_labels(labels, scores.shape[1] if scores.ndim == 2 else 0)
    if len(values) != len(scores) or scores.shape[1] < 2:
        raise InvalidInputError(
            f"scores: expected ({len(values)}, 2 or more classes), got {scores.shape}"
        )
    rows = np.arange(len(values))
    own = scores[rows, values]
    counts = np.bincount(values, minlength=scores.shape[1])
    sums = np.bincount(values, weights=own, minlength=scores.shape[1])
    present = counts > 0
    usual = np.where(present, sums / np.maximum(counts, 1), np.inf)
    fit = scores - usual
    others = np.where(np.arange(scores.shape[1]) == values[:, None], -np.inf, fit)
    looks_like = others.argmax(axis=1)
    best = others[rows, looks_like]
    doubt = best - fit[rows, values]
    likely_wrong = (doubt > 0) & (best >= 0) & (_CLEARLY * own < scores[rows, looks_like])
    order = np.argsort(-doubt, kind="stable")
    return Suspicion(doubt, looks_like.astype(np.int64), likely_wrong, order)


def confused_pairs(found: Suspicion, labels: Any) -> list[ConfusedPair]:
    """Pairs of classes by how many images of the one are likely of the other, most first."""
    values = np.asarray(labels)
    totals = np.bincount(values)
    wrong = found.likely_wrong
    pairs, counts = np.unique(
        np.stack([values[wrong], found.looks_like[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.lexsort((*pairs.T[::-1], -counts))
    return [
        ConfusedPair(label, other, count, float(count / totals[label]))
        for (label, other), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _checked_labels(labels: Any, classes: int) -> NDArray[np.int64]:
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
        raise InvalidInputError(
            f"labels: expected at least one whole number, got {values.dtype} of {values.shape}"
        )
    if values.min() < 0 or values.max() >= classes:
        raise InvalidInputError(
            f"labels: expected 0 to {classes - 1}, got {values.min()} to {values.max()}; "
            "leave unlabelled images out"
        )
    return values.astype(np.int64)
