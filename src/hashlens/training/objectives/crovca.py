"""CroVCA: views of one thing get one code, and the coding rate keeps codes apart."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, indicators, objective, with_classifier

PRECISION, MEMORY = 0.05, 0.9


@objective(
    "crovca",
    "cross entropy of the activations with the bits of the mean H of their class, minus 0.4 x the "
    "coding rate of these means; F8 reads sigmoid(H) and leaves the codes alone",
    rate=0.4,
)
@objective(
    "crovca-unsupervised",
    "as crovca, of two views of each image in place of a class and 0.3 x the rate; labels reach F8 "
    "alone",
    rate=0.3,
    labels=False,
    views=2,
)
class CroVca(nn.Module):
    """Bits that views of one thing agree on, with a term against collapse.

    I. Moummad, K. Zaher, H. Goeau, A. Joly, "Image Hashing via Cross-View Code Alignment in the
    Age of Foundation Models", arXiv 2510.27584, 2025. Views z_i of one thing g, of mean m_g, agree
    by binary cross entropy with bits that get no gradient: the mean over views and bits of
    BCE(sigmoid(z_i), m_g >= 0). Against collapse, the coding rate of the means is made large:
    R = 1/2 log det(I + d / (n eps) M'M), M (n, d) the means at unit length, times (1/d + 1/n) as
    in the authors' code, with eps = 0.05. The head ends, as theirs, in a batch normalisation
    (``latent_normalisation``). In ``crovca`` class mates are views, and a mean remembers earlier
    batches (a tenth of it is new), since a batch may hold one image of a class. In
    ``crovca-unsupervised`` an image is seen twice, each time with other augmentation and dropout.
    The authors take R of all views, of weight 0.1; with many classes in a batch bits then repeat
    each other.
    """

    means: torch.Tensor

    def __init__(self, bits: int, classes: int, *, rate: float, views: int) -> None:
        super().__init__()
        self.rate, self.two_views = rate, views == 2
        self.register_buffer("means", torch.zeros(classes, bits))

    def forward(
        self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module | None
    ) -> Losses:
        """Return the losses of a batch; of two views the second half holds the second ones."""
        latent = output.latent.float()
        if self.two_views:
            member = torch.eye(len(latent) // 2, device=latent.device).repeat(2, 1)
        else:
            member = indicators(targets, len(self.means))
        sizes = member.sum(dim=0)[:, None]
        means = (member.T @ latent).float() / sizes.clamp(min=1)
        kept = means.detach()
        if not self.two_views:
            kept = self.means.lerp_(kept, (1 - MEMORY) * (sizes > 0))
        bits = (member @ kept >= 0).float()
        agreement = functional.binary_cross_entropy_with_logits(latent, bits)
        total = agreement - self.rate * coding_rate(means[sizes[:, 0] > 0])
        return with_classifier(total, latent, targets, classifier)


def coding_rate(rows: torch.Tensor) -> torch.Tensor:
    """1/2 log det(I + d / (n eps) Z'Z) of rows (n, d) at unit length, times 1/d + 1/n."""
    n, width = rows.shape
    unit = functional.normalize(rows, dim=1)
    with torch.autocast(rows.device.type, enabled=False):  # of rounded values it may have no log
        spread = torch.eye(width, device=rows.device) + width / (n * PRECISION) * unit.T @ unit
    return torch.logdet(spread) / 2 * (1 / width + 1 / n)
