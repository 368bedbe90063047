"""A Gaussian kernel to anchors: the input of KSH and BRE."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.protocols import Features


class AnchorKernel:
    """Centred kernel values between features and randomly chosen training images.

    W. Liu et al., *Supervised hashing with kernels*, CVPR 2012, equation 3: exp(-||x - a||^2 /
    2 s^2), minus its mean over the training images; s^2 is the mean squared distance between
    training images and anchors.

    Parameters
    ----------
    features : ndarray of shape (n, d), float32
        Of the training images.
    anchors : int
        How many of them are anchors (all, if there are fewer).
    rng : Generator
        Chooses them.
    """

    def __init__(self, features: Features, anchors: int, rng: np.random.Generator) -> None:
        rows = rng.choice(len(features), min(anchors, len(features)), replace=False)
        self._anchors = features[np.sort(rows)]
        self._scale = 2.0 * float(self._squared_distances(features).mean(dtype=np.float64))
        self._mean: NDArray[np.float32] | float = 0.0
        self._mean = self(features).mean(axis=0, dtype=np.float64).astype(np.float32)

    def __len__(self) -> int:
        return len(self._anchors)

    def __call__(self, features: Features) -> NDArray[np.float32]:
        """Centred kernel values, shape (n, anchors)."""
        values: NDArray[np.float32] = np.exp(self._squared_distances(features) / -self._scale)
        values -= self._mean
        return values

    def _squared_distances(self, features: Features) -> NDArray[np.float32]:
        squared: NDArray[np.float32] = np.square(features).sum(axis=1)[:, None] - 2.0 * (
            features @ self._anchors.T
        )
        squared += np.square(self._anchors).sum(axis=1)
        np.maximum(squared, 0.0, out=squared)
        return squared
