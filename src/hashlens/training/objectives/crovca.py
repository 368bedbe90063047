"""CroVCA: images of one class are views of it, and their bits agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from hashlens.training.objectives import Losses, detached_loss, objective
from hashlens.training.objectives.pairs import common_labels

if TYPE_CHECKING:
    from hashlens.models.latent import LatentOutput


@objective(
    "crovca",
    "cross entropy of the activations with the bits of a class mate, both ways, minus 0.1 x the "
    "coding rate of H per bit; F8 reads sigmoid(H) and leaves the codes alone",
)
class CroVca(nn.Module):
    """Bits that views of one thing agree on, with a term against collapse.

    I. Moummad, K. Zaher, H. Goeau, A. Joly, "Image Hashing via Cross-View Code Alignment in the
    Age of Foundation Models", arXiv 2510.27584, the supervised form: an image's view is another
    of its class, drawn from the batch (an image without one is its own). Alignment is the binary
    cross entropy between the activations of one and the bits of the other, which get no gradient,
    in both directions (mean over bits). Against collapse the coding rate is made large,
    R = 1/2 log det(I + d / (n eps^2) Z'Z), with Z (n, d) the latent values at unit length;
    here R is divided by the number of bits. The paper's last layer is a batch normalisation:
    ``latent_normalisation``.
    """

    def __init__(self, rate: float = 0.1, precision: float = 0.5) -> None:
        super().__init__()
        self.rate, self.precision = rate, precision

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        other = latent[self._mates(targets)]
        agreement = _cross_entropy(latent, other) + _cross_entropy(other, latent)
        loss = detached_loss(latent, targets, classifier)
        against_collapse = coding_rate(latent, self.precision) / latent.shape[1]
        return Losses(agreement / 2 - self.rate * against_collapse + loss, loss)

    @staticmethod
    def _mates(targets: torch.Tensor) -> torch.Tensor:
        """For each image another that shares a label with it, drawn; itself if there is none."""
        alike = (common_labels(targets) > 0).fill_diagonal_(False)
        chance = torch.rand(alike.shape, device=alike.device).masked_fill(~alike, -1.0)
        highest, mates = chance.max(dim=1)
        return torch.where(highest < 0, torch.arange(len(mates), device=mates.device), mates)


def _cross_entropy(latent: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    bits = (other.detach() >= 0).float()
    return functional.binary_cross_entropy_with_logits(latent, bits)


def coding_rate(latent: torch.Tensor, precision: float) -> torch.Tensor:
    """1/2 log det(I + d / (n eps^2) Z'Z) of rows at unit length, in nats."""
    n, width = latent.shape
    unit = functional.normalize(latent, dim=1)
    gram = unit.T @ unit * (width / (n * precision))
    return 0.5 * torch.logdet(torch.eye(width, device=latent.device) + gram)
