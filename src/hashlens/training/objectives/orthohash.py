"""OrthoHash: one loss, the cosine to orthogonal binary targets with a margin."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, indicators, objective, with_classifier
from hashlens.training.objectives.centres import hash_centres

MARGIN = 0.2


@objective(
    "orthohash",
    "softmax loss of sqrt(bits) x (cosine of H with the hash centre of each class, less a margin "
    "of 0.2 at its own); F8 reads sigmoid(H) and leaves the codes alone",
)
class OrthoHash(nn.Module):
    """A classifier whose weights are fixed binary codes.

    J. T. Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based
    Learning Objective", NeurIPS 2021, section 3: softmax loss of s (cos(v_i, o_y) - m) against
    s cos(v_i, o_j) for the other classes, with s = sqrt(bits) and a target o_c in {-1, 1}^bits
    for each class. Turning v to its target is also what quantises it. Several labels: the margin
    is taken from each of them, and the loss is the mean over them.
    """

    centres: torch.Tensor

    def __init__(self, bits: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.scale = bits**0.5
        centres = hash_centres(bits, classes, torch.Generator().manual_seed(seed))
        self.register_buffer("centres", 2 * centres - 1)

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        cosines = functional.normalize(latent, dim=1) @ functional.normalize(self.centres, dim=1).T
        wanted = indicators(targets, len(self.centres))
        shares = wanted / wanted.sum(dim=1, keepdim=True).clamp(min=1)
        angular = functional.cross_entropy(self.scale * (cosines - MARGIN * wanted), shares)
        return with_classifier(angular, latent, targets, classifier)
