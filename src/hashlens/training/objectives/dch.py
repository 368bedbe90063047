"""DCH: Cauchy cross entropy of pairs, which gathers similar codes within a small radius."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier
from hashlens.training.objectives.pairs import pair_mean, pairs_of

GAMMA, QUANTISATION = 20.0, 0.1
_CLOSEST = 1e-6


@objective(
    "dch",
    "weighted Cauchy cross entropy of pairs of tanh(H) + 0.1 x a Cauchy quantisation loss; F8 "
    "reads sigmoid(H) and leaves the codes alone",
)
class Dch(nn.Module):
    """Similar images within a small Hamming radius.

    Y. Cao, M. Long, B. Liu, J. Wang, "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR 2018:
    p(similar) = gamma / (gamma + d), d(h_i, h_j) = (bits / 2)(1 - cos(h_i, h_j)), h the output
    of tanh. The Cauchy cross entropy is w_ij (s_ij log(d / gamma) + log(1 + gamma / d)), the
    Cauchy quantisation loss log(1 + d(|h_i|, 1) / gamma). Here both are means. The weights are
    those of HashNet: with one label per image |S| / |S1| and |S| / |S0|.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.scale = bits / (2 * GAMMA)

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        codes = torch.tanh(latent)
        pairs = pairs_of(targets)
        unit = functional.normalize(codes, dim=1)
        cosines = (unit @ unit.T)[pairs.at]
        away = (self.scale * (1 - cosines)).clamp(min=_CLOSEST)  # d / gamma
        entropy = pairs.weights * (torch.log1p(away) - (1 - pairs.similar) * away.log())
        ones = torch.ones_like(codes)
        rough = torch.log1p(self.scale * (1 - functional.cosine_similarity(codes.abs(), ones)))
        total = pair_mean(entropy) + QUANTISATION * rough.mean()
        return with_classifier(total, latent, targets, classifier)
