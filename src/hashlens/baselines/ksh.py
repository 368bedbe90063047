"""KSH: supervised hashing with kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import AnchorKernel, HashMethod, one_hot, signs_of
from hashlens.types import Features, Ids

STEPS = 100
"""Accelerated gradient steps per bit."""


class KSH(HashMethod):
    """Bits learned one by one so that inner products of codes match the labels.

    W. Liu, J. Wang, R. Ji, Y.-G. Jiang, S.-F. Chang, *Supervised hashing with kernels*, CVPR
    2012: minimise ||r S - H H'||_F^2 (equation 7), S = 1 for pairs of one class and -1 for
    others, greedily: bit k maximises y' R y on the residual R = r S - sum_{t<k} y_t y_t'
    (equation 10), starting from the spectral relaxation (equation 12) and refined by
    accelerated gradient descent on a sigmoid (equations 13 to 15); the better of the two is
    kept. S is 2 L L' - 1 1' with class indicators L, so R is never formed: memory is
    n (anchors + classes + bits), and tens of thousands of images can be used.

    Parameters
    ----------
    bits : int
        Length of a code.
    anchors : int
        Number of training images in the kernel (the paper: 300).
    images : int
        Largest number of training images used, drawn at random.
    seed : int
        Seed of the choice of anchors and images.

    Attributes
    ----------
    gains : list of tuple of two floats
        y' R y of each bit after the spectral relaxation, and as kept: never less.
    """

    supervised = True
    gains: list[tuple[float, float]]

    def __init__(
        self, bits: int, *, anchors: int = 500, images: int = 20000, seed: int = 0
    ) -> None:
        super().__init__(bits, seed=seed)
        self.anchors, self.images = anchors, images

    def _learn(self, features: Features, classes: Ids) -> None:
        rng = np.random.default_rng(self.seed)
        self.kernel = AnchorKernel(features, self.anchors, rng)
        used = np.sort(rng.choice(len(features), min(self.images, len(features)), replace=False))
        values = self.kernel(features[used])
        residual = _Residual(one_hot(classes)[used], self.bits)
        gram = (values.T @ values).astype(np.float64)
        # The ridge only matters where anchors coincide.
        gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
        whiten = np.linalg.inv(np.linalg.cholesky(gram))
        target = residual.between(values)
        columns, self.gains = [], []
        for _ in range(self.bits):
            top = np.linalg.eigh(whiten @ target @ whiten.T)[1][:, -1]
            spectral = (np.sqrt(len(values)) * whiten.T @ top).astype(np.float32)
            smooth = _refine(values, residual, spectral)
            signs = [signs_of(values @ column) for column in (spectral, smooth)]
            gains = [residual.quadratic(sign) for sign in signs]
            best = int(gains[1] > gains[0])
            self.gains.append((gains[0], gains[best]))
            columns.append((spectral, smooth)[best])
            residual.subtract(signs[best])
            image = (values.T @ signs[best]).astype(np.float64)
            target -= np.outer(image, image)
        self.weights = np.stack(columns, axis=1)


class _Residual:
    """R = bits S - sum of y y', kept as its factors: a product with it costs n (c + bits)."""

    def __init__(self, indicators: NDArray[np.float32], bits: int) -> None:
        self._indicators, self._bits = indicators, bits
        self._taken, self._count = np.zeros((bits, len(indicators)), np.float32), 0

    def __matmul__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        same = self._indicators @ (self._indicators.T @ vector)
        taken = self._taken[: self._count]
        product: NDArray[np.float32] = (
            np.float32(self._bits) * (2.0 * same - vector.sum()) - taken.T @ (taken @ vector)
        ).astype(np.float32)
        return product

    def quadratic(self, vector: NDArray[np.float32]) -> float:
        return float(np.dot(vector.astype(np.float64), self @ vector))

    def subtract(self, signs: NDArray[np.float32]) -> None:
        self._taken[self._count] = signs
        self._count += 1

    def between(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """K' R K of kernel values K (n, m), before any bit is taken."""
        of_class = (values.T @ self._indicators).astype(np.float64)
        whole = of_class.sum(axis=1)
        product: NDArray[np.float64] = self._bits * (
            2.0 * of_class @ of_class.T - np.outer(whole, whole)
        )
        return product


def _refine(
    values: NDArray[np.float32], residual: _Residual, start: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Maximise f' R f, f = 2 / (1 + exp(-K a)) - 1, by Nesterov's method with backtracking."""
    scale = float(len(values)) ** 2

    def relax(column: NDArray[np.float32]) -> tuple[float, NDArray[np.float32], Any]:
        relaxed = np.tanh(values @ column / 2)
        image = residual @ relaxed
        return -float(np.dot(relaxed, image)) / scale, relaxed, image

    position, ahead, momentum = start, start, 1.0
    step = 0.0
    for _ in range(STEPS):
        loss, relaxed, image = relax(ahead)
        gradient = (values.T @ (image * (np.square(relaxed) - 1)) / scale).astype(np.float32)
        slope = float(np.dot(gradient, gradient))
        step = step or float(np.linalg.norm(start)) / max(np.sqrt(slope), 1e-12)
        while relax(ahead - np.float32(step) * gradient)[0] > loss - 0.5 * step * slope:
            step /= 2
            if step * np.sqrt(slope) < 1e-6 * float(np.linalg.norm(position)):
                return position
        moved = ahead - np.float32(step) * gradient
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + np.float32((momentum - 1) / grown) * (moved - position)
        position, momentum = moved, grown
    return position
