"""GreedyHash: the classifier sees the signs; the gradient passes straight through them."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, classification_loss, objective
from hashlens.training.objectives.latent import Latent

PENALTY = 0.1


@objective(
    "greedyhash",
    "classification loss + 0.1 x the mean cube of the distance of |H| from 1; F8 reads the signs "
    "of H, and the gradient passes straight through them",
)
class GreedyHash(Latent):
    """Classify from the codes themselves.

    S. Su, C. Zhang, K. Han, Y. Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash
    Coding in CNN", NeurIPS 2018: forward B = sgn(H), backward dL/dH = dL/dB (section 3.2), plus
    the penalty || |H| - 1 ||_3^3, averaged here over images and bits, of weight 0.1.

    F8 reads sigmoid(sgn(H)), an affine map of the signs, so that the trained network's own scores,
    made from sigmoid(H), agree with it where |H| = 1.
    """

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        signs = torch.where(latent >= 0, 1.0, -1.0)
        straight = latent + (signs - latent).detach()
        scores = classifier(torch.sigmoid(straight))
        loss = classification_loss(scores, targets, self.label_smoothing)
        apart = (latent.abs() - 1).abs().pow(3).mean()
        return Losses(loss + PENALTY * apart, loss)
