"""ITQ: iterative quantisation of principal components."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import HashMethod, principal_components, random_rotation, signs_of
from hashlens.errors import InvalidInputError
from hashlens.types import Features, Ids

ITERATIONS = 50
"""As in the paper, section 3.2."""


class ITQ(HashMethod):
    """Signs of the principal components, rotated towards the corners of the cube.

    Y. Gong, S. Lazebnik, *Iterative quantization: a Procrustean approach to learning binary
    codes*, CVPR 2011: PCA to h dimensions (equation 1), then alternate B = sgn(V R) and the
    rotation R that minimises ||B - V R||_F (equation 2, section 2.2).

    Attributes
    ----------
    weights : ndarray of shape (d, h), float32
    bias : ndarray of shape (h,), float32
        Bit j of an image x is 1 where ``x @ weights[:, j] + bias[j] >= 0``: a linear latent layer.
    losses : list of float
        ||B - V R||_F^2 / n after each iteration; never rises.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    losses: list[float]

    def _learn(self, features: Features, classes: Ids) -> None:
        width = features.shape[1]
        if width < self.bits:
            raise InvalidInputError(
                f"ITQ: expected features of at least {self.bits} dimensions for {self.bits} bits, "
                f"got {width}; use at most {width} bits, or SH or LSH"
            )
        found = principal_components(features, self.bits)
        if found.rank < self.bits:
            raise InvalidInputError(
                f"ITQ: expected features that vary in at least {self.bits} directions, got "
                f"{found.rank}; use fewer bits or add images"
            )
        projected = ((features - found.mean) @ found.directions).astype(np.float32)
        rotation, self.losses = rotate_to_corners(projected, self.seed)
        self.weights = found.directions @ rotation
        self.bias = -found.mean @ self.weights

    def _project(self, features: Features) -> NDArray[np.float32]:
        projected: NDArray[np.float32] = features @ self.weights + self.bias
        return projected


def rotate_to_corners(
    projected: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float32], list[float]]:
    """The ITQ rotation (h, h) of centred values V (n, h), and ||B - V R||_F^2 / n per iteration."""
    rotation = random_rotation(projected.shape[1], np.random.default_rng(seed)).astype(np.float32)
    energy = float(np.square(projected, dtype=np.float64).sum())
    losses = []
    for _ in range(ITERATIONS):
        corners = signs_of(projected @ rotation)
        left, values, right = np.linalg.svd((projected.T @ corners).astype(np.float64))
        rotation = (left @ right).astype(np.float32)
        # ||B||^2 + ||V||^2 - 2 tr(R' V' B), and the trace is the sum of the singular values.
        losses.append((corners.size + energy - 2.0 * float(values.sum())) / len(projected))
    return rotation, losses
