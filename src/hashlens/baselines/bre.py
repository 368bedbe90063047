"""BRE: binary reconstructive embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import AnchorKernel, HashMethod, one_hot, signs_of
from hashlens.types import Features, Ids


class BRE(HashMethod):
    """Kernel hash functions whose Hamming distances rebuild the distances of the labels.

    B. Kulis, T. Darrell, *Learning to hash with binary reconstructive embeddings*, NIPS 2009:
    minimise the sum over pairs of (d_ij - m_ij / h)^2 (equation 2), where d_ij is 0 for one
    class and 1 for others (section 3.1, supervised), m_ij the Hamming distance, and bit p is
    sgn(sum_q W_pq k(x_pq, x)) (equation 1). One W_pq at a time moves to its exact optimum
    (section 3.2). The pairs' matrix is a sum of class indicators and bits, so all pairs of the
    training images take part without the matrix being formed: a move costs n (classes + bits).

    Parameters
    ----------
    bits : int
        Length of a code.
    anchors : int
        s, anchors per bit (the paper: 50), drawn from ten times as many.
    images : int
        Largest number of training images used, drawn at random.
    sweeps : int
        Largest number of passes over all weights; ends early when nothing improves.
    seed : int
        Seed of anchors, images and first weights.

    Attributes
    ----------
    losses : list of float
        Mean over all pairs of equation 2 before the first and after each sweep; never rises.
    """

    supervised = True
    losses: list[float]

    def __init__(
        self, bits: int, *, anchors: int = 50, images: int = 10000, sweeps: int = 3, seed: int = 0
    ) -> None:
        super().__init__(bits, seed=seed)
        self.anchors, self.images, self.sweeps = anchors, images, sweeps

    def _learn(self, features: Features, classes: Ids) -> None:
        rng = np.random.default_rng(self.seed)
        self.kernel = AnchorKernel(features, 10 * self.anchors, rng)
        used = np.sort(rng.choice(len(features), min(self.images, len(features)), replace=False))
        values = self.kernel(features[used])
        indicators = one_hot(classes[used])
        per_bit = min(self.anchors, len(self.kernel))
        chosen = [rng.choice(len(self.kernel), per_bit, replace=False) for _ in range(self.bits)]
        weights = np.zeros((len(self.kernel), self.bits), np.float32)
        for bit, rows in enumerate(chosen):
            weights[rows, bit] = rng.standard_normal(per_bit)
        signs = signs_of(values @ weights)
        self.losses = [reconstruction_loss(signs, indicators)]
        for _ in range(self.sweeps):
            moved = False
            for bit in rng.permutation(self.bits):
                moved |= _improve_bit(values, weights, signs, indicators, bit, chosen[bit])
            self.losses.append(reconstruction_loss(signs, indicators))
            if not moved:
                break
        self.weights = weights


def reconstruction_loss(signs: NDArray[np.float32], indicators: NDArray[np.float32]) -> float:
    """Mean over all ordered pairs of (d_ij - m_ij / h)^2, from the factors of both.

    These are bits (n, h) as 1 and -1, and class indicators (n, c).
    """
    # d - m/h = 1 - L L' - 1/2 + Y Y' / 2h = F D F' with F = [1, L, Y] and a diagonal D.
    n, bits = signs.shape
    factors = np.hstack([np.ones((n, 1)), indicators, signs]).astype(np.float64)
    diagonal = np.concatenate([[0.5], -np.ones(indicators.shape[1]), np.full(bits, 0.5 / bits)])
    gram = factors.T @ factors
    weighted = gram * diagonal
    mean: float = np.einsum("ij,ji->", weighted, weighted) / n**2
    return mean


def _improve_bit(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    signs: NDArray[np.float32],
    indicators: NDArray[np.float32],
    bit: int,
    anchors: Ids,
) -> bool:
    """Move the weights of one bit to their optima in turn; updates weights and signs."""
    n, bits = signs.shape
    others = np.delete(signs, bit, axis=1)
    # What a pair costs more if this bit differs: A = 1/h^2 - (2/h) (d - m'/h), m' without it.
    factors = np.hstack([np.ones((n, 1), np.float32), indicators, others])
    coefficients = np.concatenate(
        [
            [1 / bits**2 - 2 / bits * (1 - (bits - 1) / (2 * bits))],
            np.full(indicators.shape[1], 2 / bits),
            np.full(bits - 1, -1 / bits**2),
        ]
    ).astype(np.float32)
    projected = values @ weights[:, bit]
    moved = False
    for anchor in anchors:
        step = best_step(projected, values[:, anchor], factors, coefficients)
        if step != 0.0:
            weights[anchor, bit] += np.float32(step)
            projected = values @ weights[:, bit]
            moved = True
    signs[:, bit] = signs_of(projected)
    return moved


def best_step(
    projected: NDArray[np.float32],
    direction: NDArray[np.float32],
    factors: NDArray[np.float32],
    coefficients: NDArray[np.float32],
) -> float:
    """The t that minimises the cost of sgn(projected + t direction); 0 if none is lower.

    The sign of image i changes at t_i = -projected_i / direction_i. From t = -inf upwards the
    images change one by one, and the cost of the cut between signs changes by running sums in
    that order (section 3.2). ``projected`` and ``direction`` (n,) are the bit's current values and
    what raising the weight by 1 adds to them; pairs that differ in this bit cost
    F diag(coefficients) F' with F = ``factors`` (n, f).
    """
    safe = np.where(direction == 0, np.float32(1e-30), direction)
    turns = -projected.astype(np.float64) / safe
    order = np.argsort(turns)
    turns = turns[order]
    start = np.where(safe > 0, np.float32(-1), np.float32(1))[order]
    rows = factors[order] * start[:, None]
    running = np.cumsum(rows, axis=0, dtype=np.float32)
    # Image m leaves one side for the other: + pairs with those still there, - with those moved.
    balance = running[-1] - 2 * running + rows
    change = np.einsum("if,if->i", rows * coefficients, balance, dtype=np.float64)
    cost = np.concatenate([[0.0], np.cumsum(change)])
    edges = np.concatenate([[turns[0] - 1.0], turns, [turns[-1] + 1.0]])
    # No t is between equal turns, nor where float32 would round it onto one of them.
    room = np.diff(edges) > 1e-6 * np.maximum(1e-3, np.abs(edges[:-1]))
    current = cost[int(np.searchsorted(turns, 0.0))]
    best = int(np.argmin(np.where(room, cost, np.inf)))
    if not cost[best] < current - 1e-6 * max(1.0, abs(current)):
        return 0.0
    return float((edges[best] + edges[best + 1]) / 2)
