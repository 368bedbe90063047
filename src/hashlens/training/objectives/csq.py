"""Central similarity: each class has a hash centre, and the codes of its images move there."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier
from hashlens.training.objectives.centres import hash_centres, majority

QUANTISATION = 1e-4


@objective(
    "csq",
    "cross entropy of the activations with the hash centre of the class + 0.0001 x a quantisation "
    "loss; F8 reads sigmoid(H) and leaves the codes alone",
)
class CentralSimilarity(nn.Module):
    """Codes near the hash centre of their class.

    L. Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval",
    CVPR 2020: central similarity loss L_C, the binary cross entropy between the activations and
    the centre's bits (equation 4; mean over bits), plus 1e-4 times the quantisation loss
    L_Q = log cosh(|2a - 1| - 1) (equation 5). Several labels: the centre is the majority of the
    labels' centres, ties from a fixed random code (section 3.2). The centres are better than the
    paper's: see ``hash_centres``.

    The method has no classifier. F8 is trained on the activations with the gradient stopped, so
    that it predicts classes and does not change the codes.
    """

    centres: torch.Tensor
    tie: torch.Tensor

    def __init__(self, bits: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("centres", hash_centres(bits, classes, generator))
        self.register_buffer("tie", (torch.rand(bits, generator=generator) < 0.5).float())

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        centre = majority(self.centres, targets, self.tie)
        central = functional.binary_cross_entropy_with_logits(latent, centre)
        apart = (2 * torch.sigmoid(latent) - 1).abs() - 1  # from -1 to 0: no overflow
        total = central + QUANTISATION * apart.cosh().log().mean()
        return with_classifier(total, latent, targets, classifier)
