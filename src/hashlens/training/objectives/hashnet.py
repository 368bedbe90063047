"""HashNet: the weighted likelihood of pairs, with a tanh that grows into the sign."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier
from hashlens.training.objectives.pairs import pair_likelihood, pair_mean, pairs_of

GROWTH, STAGE, LARGEST = 0.005, 200, 10.0


@objective(
    "hashnet",
    "weighted negative log-likelihood of pairs of tanh(beta H), where beta grows from 1 to 10; F8 "
    "reads sigmoid(H) and leaves the codes alone",
)
class HashNet(nn.Module):
    """Learn signs by continuation.

    Z. Cao, M. Long, J. Wang, P. S. Yu, "HashNet: Deep Learning to Hash by Continuation", ICCV
    2017: the mean over pairs of w_ij (log(1 + exp(a g_i . g_j)) - a s_ij g_i . g_j), with
    g = tanh(beta h) and weights that even out similar and dissimilar pairs. beta grows in
    training, so that g becomes the sign of h: beta = sqrt(1 + 0.005 t) after t batches, in stages
    of 200 and not above 10; a = 10 / bits.
    """

    steps: torch.Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.slope = 10 / bits
        # A buffer, so that a resumed run goes on where it was.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        beta = (1 + GROWTH * (self.steps // STAGE * STAGE)).sqrt().clamp(max=LARGEST)
        if self.training:
            self.steps += 1
        codes = torch.tanh(beta * latent)
        pairs = pairs_of(targets)
        likelihood = pairs.weights * pair_likelihood(self.slope * codes @ codes.T, pairs)
        return with_classifier(pair_mean(likelihood), latent, targets, classifier)
