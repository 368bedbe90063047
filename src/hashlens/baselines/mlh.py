"""MLH: minimal loss hashing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import HashMethod, principal_components
from hashlens.types import Features, Ids

PAIRS = 100
"""Pairs per step (the authors' mini-batch)."""
MOMENTUM = 0.9


class MLH(HashMethod):
    """Linear hash functions under a hinge-like loss on the Hamming distance of pairs.

    M. Norouzi, D. Fleet, *Minimal loss hashing for compact binary codes*, ICML 2011: a pair of
    one class costs max(m - r + 1, 0) at distance m, another l max(r - m + 1, 0) (equation 4).
    The bound of equation 7 is lowered by stochastic gradient steps (equation 11) with the exact
    loss-augmented codes of section 3.2, half of the pairs similar; weights start as random
    projections, decay, and have no offset, as in the authors' code. Features are centred and
    whitened by PCA first, which only changes how fast the steps go.

    Parameters
    ----------
    bits : int
        Length of a code.
    radius : int, optional
        r, in bits; two fifths of the bits by default.
    balance : float
        l, the cost of a dissimilar pair.
    steps : int
        Mini-batches of 100 pairs.
    rate : float
        Size of the first step; falls linearly to 0.
    decay : float
        Weight of ||W||^2 / 2 in the loss.
    seed : int
        Seed of weights and pairs.

    Attributes
    ----------
    losses : list of float
        Mean loss of equation 4 over each tenth of the steps.
    """

    supervised = True
    losses: list[float]

    def __init__(
        self,
        bits: int,
        *,
        radius: int | None = None,
        balance: float = 1.0,
        steps: int = 5000,
        rate: float = 1.0,
        decay: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(bits, seed=seed)
        self.radius, self.balance = radius, balance
        self.steps, self.rate, self.decay = steps, rate, decay

    def _learn(self, features: Features, classes: Ids) -> None:
        rng = np.random.default_rng(self.seed)
        radius = max(2 * self.bits // 5, 1) if self.radius is None else self.radius
        self.mean, whiten = _whitening(features)
        inputs = ((features - self.mean) @ whiten).astype(np.float32, copy=False)
        drawn = rng.standard_normal((inputs.shape[1], self.bits))
        drawn /= np.linalg.norm(drawn, axis=0)
        weights = drawn.astype(np.float32)
        velocity = np.zeros(weights.shape, np.float32)
        losses = np.zeros(self.steps)
        for step, (first, second, similar) in zip(
            range(self.steps), _drawn(classes, rng), strict=False
        ):
            # Gradient of the bound, (g - b(x)) x' + (h - b(x')) x'', and loss: means over pairs.
            x, y = inputs[first], inputs[second]
            left, right = x @ weights, y @ weights
            g, h = loss_augmented_codes(left, right, similar, radius, self.balance)
            gradient = x.T @ (g - (left >= 0)) + y.T @ (h - (right >= 0))
            gradient = gradient.astype(np.float32) / np.float32(PAIRS)
            distance = ((left >= 0) != (right >= 0)).sum(axis=1)
            losses[step] = pair_loss(distance, similar, radius, self.balance).mean()
            rate = np.float32(self.rate * (1 - step / self.steps))
            velocity *= np.float32(MOMENTUM)
            velocity -= rate * (gradient + np.float32(self.decay) * weights)
            weights += velocity
        self.losses = [float(part.mean()) for part in np.array_split(losses, min(10, self.steps))]
        self.weights = whiten @ weights


def _whitening(features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean, and a map (d, k) to at most 128 components of equal variance 1 / k."""
    found = principal_components(features, 128)
    count = min(found.rank, len(found.variances))
    variances = found.variances[:count] + 1e-3 * found.variances[0]
    scale = (1 / np.sqrt(count * variances)).astype(np.float32)
    return found.mean, found.directions[:, :count] * scale


def pair_loss(
    distance: NDArray[np.int64], similar: NDArray[np.bool_], radius: int, balance: float
) -> NDArray[np.float32]:
    """Equation 4: loss of pairs at Hamming distances, broadcast against ``similar``."""
    near = np.maximum(distance - radius + 1, 0)
    far = balance * np.maximum(radius - distance + 1, 0)
    return np.where(similar, near, far).astype(np.float32)


def loss_augmented_codes(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    similar: NDArray[np.bool_],
    radius: int,
    balance: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Codes g, h (0/1) that maximise loss(||g - h||) + g' u + h' v, exactly (section 3.2).

    A bit adds max(u, v) if it differs and max(u + v, 0) if not; for each distance m, the m bits
    that gain most by differing do, and the best m is taken. u and v (p, h) are the projections of
    the two images of each pair.
    """
    pairs, bits = left.shape
    gain = np.maximum(left, right) - np.maximum(left + right, 0)
    order = np.argsort(-gain, axis=1)
    total = np.zeros((pairs, bits + 1), np.float32)
    np.cumsum(np.take_along_axis(gain, order, axis=1), axis=1, out=total[:, 1:])
    total += pair_loss(np.arange(bits + 1)[None], similar[:, None], radius, balance)
    differing = np.arange(bits)[None] < total.argmax(axis=1)[:, None]
    apart = np.zeros((pairs, bits), np.bool_)
    np.put_along_axis(apart, order, differing, axis=1)
    both = left + right >= 0
    first = np.where(apart, left >= right, both).astype(np.float32)
    second = np.where(apart, left < right, both).astype(np.float32)
    return first, second


def _drawn(classes: Ids, rng: np.random.Generator) -> Iterator[tuple[Ids, Ids, NDArray[np.bool_]]]:
    """Pairs of training images, a step's at a time; in half of them both are of one class."""
    order, counts = np.argsort(classes, kind="stable"), np.bincount(classes)
    starts = np.cumsum(counts) - counts
    while True:
        first, second = (rng.integers(len(classes), size=PAIRS) for _ in range(2))
        same = classes[first[: PAIRS // 2]]
        within = (rng.random(len(same)) * counts[same]).astype(np.int64)
        second[: PAIRS // 2] = order[starts[same] + within]
        yield first, second, classes[first] == classes[second]
