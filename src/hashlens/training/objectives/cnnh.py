"""CNNH and CNNH+: codes of a decomposed similarity matrix as targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hashlens.baselines.base import check_labels
from hashlens.codes.packing import check_bits
from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, classification_loss, objective
from hashlens.training.objectives.centres import majority

SWEEPS = 5
_PER_CLASS = 50


class Decomposition(NamedTuple):
    """Target codes, and how well they rebuild the similarities."""

    bits: NDArray[np.uint8]  # (n, h): 0 and 1
    # mean of (S_ij - H_i . H_j / h)^2 over pairs i != j before the first and after each sweep, H
    # still relaxed; never rises
    losses: list[float]


def decompose_similarity(
    labels: Any, bits: int, *, sweeps: int = SWEEPS, seed: int = 0
) -> Decomposition:
    """Codes whose inner products approximate the similarity matrix of the labels.

    R. Xia, Y. Pan, H. Lai, C. Liu, S. Yan, *Supervised hashing for image retrieval via image
    representation learning*, AAAI 2014, stage 1: minimise ||S - H H' / q||_F^2 over H in
    [-1, 1]^(n x q) (equation 1), one entry at a time (equations 3 to 5), then take signs. S is
    1 for two images of one class and -1 for others; it is held as class sums of H, so an entry
    costs q, not n, and all training images take part. The diagonal of S, which any code
    fulfils after the signs, is left out: each entry then has an exact optimum.
    """
    check_bits(bits)
    array = np.asarray(labels)
    classes = check_labels(array, array.size, "CNNH")
    relaxed = np.random.default_rng(seed).uniform(-1, 1, (len(classes), bits))
    losses = [_loss(relaxed, classes)]
    for _ in range(sweeps):
        _sweep(relaxed, classes, int(classes.max()) + 1)
        losses.append(_loss(relaxed, classes))
    return Decomposition((relaxed >= 0).astype(np.uint8), losses)


def _loss(relaxed: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Mean of (S - H H' / q)^2 off the diagonal, without n x n."""
    n, bits = relaxed.shape
    sums = np.zeros((int(classes.max()) + 1, bits))
    np.add.at(sums, classes, relaxed)
    gram, total = relaxed.T @ relaxed / bits, sums.sum(axis=0)
    cross = (2 * np.square(sums).sum() - np.square(total).sum()) / bits
    diagonal = np.square(1 - np.square(relaxed).sum(axis=1) / bits).sum()
    return float((n * n - 2 * cross + np.square(gram).sum() - diagonal) / (n * (n - 1)))


@njit(cache=True)
def _sweep(relaxed, classes, n_classes):  # type: ignore[no-untyped-def] # pragma: no cover
    """One pass of coordinate descent over H (n, q), in place; plain loops for the compiler."""
    n, bits = relaxed.shape
    gram = relaxed.T @ relaxed
    sums = np.zeros((n_classes, bits))
    total = np.zeros(bits)
    for i in range(n):
        sums[classes[i]] += relaxed[i]
        total += relaxed[i]
    for i in range(n):
        row = relaxed[i]
        own = sums[classes[i]]
        for j in range(bits):
            # Sums over all images but i of H_lj (H_i . H_l), H_lj S_il and H_lj^2.
            inner = 0.0
            for k in range(bits):
                inner += row[k] * (gram[k, j] - row[k] * row[j])
            wanted = 2.0 * (own[j] - row[j]) - (total[j] - row[j])
            curvature = gram[j, j] - row[j] * row[j]
            if curvature <= 0.0:
                continue
            moved = min(1.0, max(-1.0, row[j] - (inner - bits * wanted) / curvature))
            change = moved - row[j]
            for k in range(bits):
                if k != j:
                    gram[k, j] += change * row[k]
                    gram[j, k] = gram[k, j]
            gram[j, j] += moved * moved - row[j] * row[j]
            own[j] += change
            total[j] += change
            row[j] = moved


def class_codes(classes: int, bits: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Target code of each class, shape (classes, bits), 0 and 1.

    With similarities from labels, stage 1 gives all images of a class one code: their rows of S
    are equal. So a few images of each class suffice, as long as all classes have equally many.
    """
    labels = np.repeat(np.arange(classes), _PER_CLASS)
    found = decompose_similarity(labels, bits, sweeps=4 * SWEEPS, seed=seed).bits
    votes = found.reshape(classes, _PER_CLASS, bits).sum(axis=1)
    codes: NDArray[np.uint8] = (2 * votes >= _PER_CLASS).astype(np.uint8)
    return codes


@objective(
    "cnnh",
    "cross entropy of the activations with target codes from a decomposed similarity matrix; F8 "
    "reads sigmoid(H) and leaves the codes alone",
    with_labels=False,
)
@objective("cnnh+", "as cnnh, but the loss of F8 also shapes the codes", with_labels=True)
class Cnnh(nn.Module):
    """The network learns the target codes that stage 1 made of the labels.

    R. Xia, Y. Pan, H. Lai, C. Liu, S. Yan, "Supervised Hashing for Image Retrieval via Image
    Representation Learning", AAAI 2014, stage 2: cross entropy between the activations and the
    target bits (mean over bits). All images of a class share one target code. Where an image has
    several labels, which the paper does not cover, each bit is that of most labels. CNNH+ has
    the class labels as further targets; in the paper they are outputs next to the bits, here F8
    behind them. In CNNH the gradient of F8's loss is stopped before the bits, so that it
    predicts classes and does not change the codes.
    """

    codes: torch.Tensor

    def __init__(self, bits: int, classes: int, seed: int = 0, *, with_labels: bool) -> None:
        super().__init__()
        self.with_labels = with_labels
        codes = torch.from_numpy(class_codes(classes, bits, seed=seed)).float()
        self.register_buffer("codes", codes)

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        wanted = majority(self.codes, targets, torch.ones_like(self.codes[0]))
        rebuilt = functional.binary_cross_entropy_with_logits(latent, wanted)
        activations = torch.sigmoid(latent)
        scores = classifier(activations if self.with_labels else activations.detach())
        loss = classification_loss(scores, targets)
        return Losses(rebuilt + loss, loss)
