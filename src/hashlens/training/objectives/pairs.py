"""Pairs of images in a batch, and objectives over them: DPSH, HashNet, DCH and Bi-half."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, objective, with_classifier


class Pairs(NamedTuple):
    """All pairs i < j of a batch, p of them."""

    at: tuple[torch.Tensor, torch.Tensor]  # i and j, int64
    similar: torch.Tensor  # float32: 1 where both have a label in common, else 0
    weights: torch.Tensor  # float32: HashNet's weights, see ``pairs_of``


def pair_indices(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows i and columns j, i < j, of all pairs of images."""
    rows, columns = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    return rows, columns


def pairs_of(targets: torch.Tensor) -> Pairs:
    """Pairs of a batch, from one label per image (n,) or from several (n, classes).

    The weights are those of Z. Cao et al., ICCV 2017: the share of similar and of
    dissimilar pairs is evened out, |S| / |S1| and |S| / |S0|, and a similar pair counts by
    the labels that it has in common, |y_i and y_j| / |y_i or y_j|.
    """
    rows, columns = pair_indices(targets)
    if targets.ndim == 1:
        common = (targets[:, None] == targets).float()
    else:
        common = targets.float() @ targets.float().T
    counts = common.diagonal()
    shared = common[rows, columns]
    similar = (shared > 0).float()
    shared = shared / (counts[rows] + counts[columns] - shared).clamp(min=1)
    total, alike = len(similar), similar.sum()
    weights = torch.where(
        similar > 0, shared * total / alike.clamp(min=1), total / (total - alike).clamp(min=1)
    )
    return Pairs((rows, columns), similar, weights)


def pair_likelihood(products: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Negative log-likelihood per pair, p(similar) = sigmoid(product): log(1 + e^x) - s x."""
    at = products[pairs.at]
    return functional.softplus(at) - pairs.similar * at


def pair_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over pairs; 0 of a single image, which has none."""
    return values.sum() / max(1, len(values))


QUANTISATION = 0.1
"""Weight of the quantisation loss of DPSH and DCH."""


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


GAMMA = 20.0
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


PULL = 0.1


@objective(
    "bihalf",
    "mean square difference between the cosines of F7 and those of codes of which each bit is 1 "
    "for half of a batch; labels reach F8 alone, which reads sigmoid(H)",
    labels=False,
    moves_target=True,  # H's gradient moves F7
)
class BiHalf(nn.Module):
    """Bits of maximal entropy, without labels.

    Y. Li, J. van Gemert, "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021:
    forward, the half of a batch with the larger latent values gets +1 and the other half -1, bit
    by bit; backward, dL/dU = dL/dB + gamma (U - B). L is the mean over
    pairs of the squared difference between the cosine of the features and that of the codes.
    The features get no gradient. gamma is for the mean over images and bits.
    """

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
        rough = 0.5 * (latent - codes).square().mean()
        total = pair_mean(apart.square()) + PULL * rough
        return with_classifier(total, latent, targets, classifier)


def half_signs(latent: torch.Tensor) -> torch.Tensor:
    """+1 for the larger half of each column (the middle one of an odd number too), else -1."""
    n = len(latent)
    signs = torch.full_like(latent, -1.0, requires_grad=False)
    larger = latent.detach().argsort(dim=0, descending=True)[: (n + 1) // 2]
    return signs.scatter_(0, larger, 1.0)
