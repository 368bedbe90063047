"""SSDH: classification, activations pushed to 0 and 1, and balanced codes."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective
from hashlens.training.objectives.latent import Latent


@objective(
    "ssdh",
    "classification loss, minus the mean square distance of activations from 0.5, plus the square "
    "of (the image's mean activation - 0.5); F8 reads sigmoid(H)",
)
class Ssdh(Latent):
    """The authors' later objective.

    H.-F. Yang, K. Lin, C.-S. Chen, "Supervised Learning of Semantics-Preserving Hash via Deep
    Convolutional Neural Networks", TPAMI 2018: E1 - E2 + E3 (their equation of the overall
    objective, all three weights 1) with, for activations a_n of K units and mean over the images n,

    - E1: the classification loss;
    - E2 = (1 / K) ||a_n - 0.5||^2, which pushes each activation to 0 or 1;
    - E3 = (mean_k(a_nk) - 0.5)^2, so that half of a code's bits are ones.
    """

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        loss = super().forward(output, targets, classifier).classification
        activations = output.activations.float()
        away = (activations - 0.5).square().mean()
        uneven = (activations.mean(dim=1) - 0.5).square().mean()
        return Losses(loss - away + uneven, loss)
