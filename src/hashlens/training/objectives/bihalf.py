"""Bi-half: each bit is 1 for half of the images, and codes are as similar as the features are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier
from hashlens.training.objectives.pairs import pair_indices, pair_mean

GAMMA = 0.1


@objective(
    "bihalf",
    "mean square difference between the cosines of F7 and those of codes of which each bit is 1 "
    "for half of a batch; labels reach F8 alone, which reads sigmoid(H)",
    labels=False,
)
class BiHalf(nn.Module):
    """Bits of maximal entropy, without labels.

    Y. Li, J. van Gemert, "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021:
    forward, the half of a batch with the larger latent values gets +1 and the other half -1, bit
    by bit; backward, dL/dU = dL/dB + gamma (U - B). L is the mean over
    pairs of the squared difference between the cosine of the features and that of the codes.
    The features get no gradient. gamma is for the mean over images and bits.
    """

    moves_target = True  # H's gradient moves F7: the losses of two epochs do not compare

    def forward(
        self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module | None
    ) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        codes = half_signs(latent)
        # Forward the codes; backward the gradient at the codes, and gamma (U - B).
        straight = latent + (codes - latent).detach()
        features = functional.normalize(output.features.detach().float(), dim=1)
        unit = functional.normalize(straight, dim=1)
        apart = (features @ features.T - unit @ unit.T)[pair_indices(latent)]
        pull = 0.5 * (latent - codes).square().mean()
        total = pair_mean(apart.square()) + GAMMA * pull
        return with_classifier(total, latent, targets, classifier)


def half_signs(latent: torch.Tensor) -> torch.Tensor:
    """+1 for the larger half of each column (the middle one of an odd number too), else -1."""
    n = len(latent)
    signs = torch.full_like(latent, -1.0, requires_grad=False)
    larger = latent.detach().argsort(dim=0, descending=True)[: (n + 1) // 2]
    return signs.scatter_(0, larger, 1.0)
