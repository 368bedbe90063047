"""DPSH: the likelihood of pairs, and codes near -1 and 1."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier
from hashlens.training.objectives.pairs import pair_likelihood, pair_mean, pairs_of

QUANTISATION = 0.1


@objective(
    "dpsh",
    "negative log-likelihood of pairs with sigmoid(h_i h_j / 2) + 0.1 x the mean square distance "
    "of H from its signs; F8 reads sigmoid(H) and leaves the codes alone",
)
class Dpsh(nn.Module):
    """Inner products of the latent values say which images are similar.

    W.-J. Li, S. Wang, W.-C. Kang, "Feature Learning based Deep Supervised Hashing with Pairwise
    Labels", IJCAI 2016: the sum over pairs of log(1 + exp(t_ij)) - s_ij t_ij, where
    t_ij = u_i . u_j / 2, plus eta times the sum over images of ||b_i - u_i||^2, b_i = sgn(u_i).
    Here both are means (over pairs; over images and bits). Two images are similar if they have a
    label in common.
    """

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        pairs = pairs_of(targets)
        likelihood = pair_mean(pair_likelihood(latent @ latent.T / 2, pairs))
        signs = torch.where(latent >= 0, 1.0, -1.0)
        total = likelihood + QUANTISATION * (signs - latent).square().mean()
        return with_classifier(total, latent, targets, classifier)
