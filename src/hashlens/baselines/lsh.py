"""LSH: random hyperplanes."""

from __future__ import annotations

import numpy as np

from hashlens.baselines.base import HashMethod
from hashlens.types import Features, Ids


class LSH(HashMethod):
    """Signs of Gaussian random projections of centred features.

    M. Charikar, *Similarity estimation techniques from rounding algorithms*, STOC 2002, section
    3: bit j is 1 where r_j . x >= 0, so that two images differ in a bit with probability
    angle / pi. Features are centred on the training mean, as the comparisons that the paper
    cites do: without it non-negative features such as GIST share most bits.
    """

    def _learn(self, features: Features, classes: Ids) -> None:
        rng = np.random.default_rng(self.seed)
        weights = rng.standard_normal((features.shape[1], self.bits))
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.weights = weights.astype(np.float32)
