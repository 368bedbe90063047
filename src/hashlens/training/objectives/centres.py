"""Hash centres, one code per class, far from each other; and objectives that move codes there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, indicators, objective, with_classifier

_DRAWS, _WORK, _FEW = 100, 10_000_000, 8


def hash_centres(bits: int, classes: int, generator: torch.Generator) -> torch.Tensor:
    """Hash centres far from each other, with bits that all say something.

    L. Yuan et al., CVPR 2020, section 3.1 and algorithm 1: rows of a Hadamard matrix and their
    negations, which are bits / 2 or more apart, else codes with half of their bits set at random.
    Three things are better here. A matrix of Paley's kind serves where bits is no power of two
    (12, 24, 48, 96). Which rows, and their signs, are drawn, so that no bit is the same for all
    classes and few bits repeat each other. Up to eight classes may have bits that split the
    classes in two halves in all ways, which is as far apart as Plotkin's bound allows.

    Of up to 100 draws the one is kept with the fewest constant bits, then the farthest closest
    pair, then the most different bits. With thousands of classes there are fewer draws.
    """
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    matrix = hadamard(bits)
    best, score = np.zeros((classes, bits), dtype=np.int8), (-bits - 1, 0, 0)
    for _ in range(max(1, min(_DRAWS, _WORK // classes**2))):
        drawn = []
        if matrix is not None and classes <= 2 * bits:
            drawn.append(_rows(matrix, classes, rng))
        if 2 <= classes <= _FEW:
            drawn.append(_splits(bits, classes, rng))
        for centres in drawn or [_balanced(bits, classes, rng)]:
            if (reached := _score(centres)) > score:
                best, score = centres, reached
    return torch.from_numpy(best > 0).float()


def majority(centres: torch.Tensor, targets: torch.Tensor, tie: torch.Tensor) -> torch.Tensor:
    """Centre of each image's class; with several labels each bit of most of them, else of tie."""
    votes = indicators(targets, len(centres)) @ (2 * centres - 1)
    return torch.where(votes == 0, tie, (votes > 0).float())


def hadamard(order: int) -> NDArray[np.int8] | None:
    """A Hadamard matrix whose first row is ones, by Paley (1933) or doubling; else None.

    Paley's first construction needs a prime order - 1 = 3 modulo 4: the quadratic residues make
    its rows.
    """
    if order <= 2:
        return np.array([[1, 1], [1, -1]], dtype=np.int8)[:order, :order]
    if order % 4:
        return None
    prime = order - 1
    doubled = order & prime == 0  # rows of a power of two by doubling repeat the fewest bits
    if not doubled and all(prime % factor for factor in range(2, int(prime**0.5) + 1)):
        residues = np.full(prime, -1, dtype=np.int8)
        residues[np.arange(1, prime) ** 2 % prime] = 1
        residues[0] = 0
        made = np.eye(order, dtype=np.int8)
        made[0, 1:], made[1:, 0] = 1, -1
        made[1:, 1:] += residues[(np.arange(prime)[:, None] - np.arange(prime)) % prime]
        made *= made[0]
        return made
    half = hadamard(order // 2)
    return None if half is None else np.kron(np.array([[1, 1], [1, -1]], dtype=np.int8), half)


def _rows(matrix: NDArray[np.int8], classes: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Different rows with random signs; where there are more classes, negations of some too."""
    first = int(classes <= 2 * (len(matrix) - 1))  # the row of ones only where it is needed
    chosen = first + rng.permutation(len(matrix) - first)
    rows = matrix[chosen] * rng.choice(np.array([-1, 1], dtype=np.int8), (len(chosen), 1))
    return np.concatenate([rows, -rows])[:classes]


def _splits(bits: int, classes: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Bits that are 1 for half of the classes, each such half equally often."""
    halves = list(combinations(range(classes), classes // 2))
    order = np.concatenate([rng.permutation(len(halves)) for _ in range(-(-bits // len(halves)))])
    centres = np.full((classes, bits), -1, dtype=np.int8)
    for bit, which in enumerate(order[:bits]):
        centres[list(halves[which]), bit] = 1
    centres *= rng.choice(np.array([-1, 1], dtype=np.int8), bits)
    return centres


def _balanced(bits: int, classes: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Different codes with half of their bits set at random; the same ones where all are used."""
    drawn = np.full((4 * classes, bits), -1, dtype=np.int8)
    drawn[:, : bits // 2] = 1
    found = rng.permutation(np.unique(rng.permuted(drawn, axis=1), axis=0))
    return found[np.arange(classes) % len(found)]


def _score(centres: NDArray[np.int8]) -> tuple[int, int, int]:
    """Constant bits (negative), distance of the closest pair, and bits that differ."""
    classes, bits = centres.shape
    constant = int((np.abs(centres.sum(axis=0, dtype=np.int64)) == classes).sum())
    values = centres.astype(np.float32)
    products = values @ values.T
    np.fill_diagonal(products, -bits)
    different = len(np.unique(centres * centres[0], axis=1).T)
    return -constant, round((bits - float(products.max())) / 2), different


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
