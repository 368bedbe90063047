"""Objectives of the classification loss: the paper's own, SSDH and GreedyHash."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, classification_loss, objective


@objective("latent", "classification loss alone, as in the paper; F8 reads sigmoid(H)")
@objective("softmax", "classification loss of a network without H; the codes are LSH of its F7")
class Latent(nn.Module):
    """Softmax loss on F8's scores, which see the image through the latent layer alone.

    K. Lin, H.-F. Yang, J.-H. Hsiao, C.-S. Chen, "Deep Learning of Binary Hash Codes for Fast Image
    Retrieval", CVPR Workshops 2015, section 3.1: no term on the codes; the sigmoid and the
    classifier behind it make the activations gather near 0 and 1 by themselves. Under the name
    ``softmax`` F8 reads F7 instead, as in the network that the paper starts from.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        loss = classification_loss(output.scores, targets, self.label_smoothing)
        return Losses(loss, loss)


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
