"""ITQ-CCA: iterative quantisation of the directions that correlate with the labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import HashMethod, one_hot
from hashlens.baselines.itq import rotate_to_corners
from hashlens.types import Features, Ids

RIDGE = 1e-4
"""Added to each covariance, as a share of its mean variance."""


class ITQCCA(HashMethod):
    """ITQ after canonical correlation analysis with the class indicators.

    Y. Gong, S. Lazebnik, *Iterative quantization*, CVPR 2011, section 4: the directions solve
    X'Y (Y'Y + rI)^-1 Y'X w = l^2 (X'X + rI) w (equation 5), each is scaled by its correlation l,
    and ITQ rotates the result. c classes give at most c - 1 directions; where there are more
    bits, the remaining columns are zero before the rotation, as the generalised eigenvalue
    problem gives (l = 0).
    """

    supervised = True

    def _learn(self, features: Features, classes: Ids) -> None:
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = features - self.mean
        directions = _canonical_directions(centred, one_hot(classes))[:, : self.bits]
        missing = self.bits - directions.shape[1]
        padded = np.pad(directions, ((0, 0), (0, missing))).astype(np.float32)
        rotation, self.losses = rotate_to_corners(centred @ padded, self.seed)
        self.weights = padded @ rotation


def _canonical_directions(
    centred: NDArray[np.float32], indicators: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Directions (d, at most c - 1), each scaled by its correlation, largest first.

    The problem is solved on the side of the c indicators, which is far smaller than d.
    """
    n = len(centred)
    targets = indicators - indicators.mean(axis=0)
    cxx = (centred.T @ centred).astype(np.float64) / n
    cxy = (centred.T @ targets).astype(np.float64) / n
    cyy = (targets.T @ targets).astype(np.float64) / n
    cxx += RIDGE * np.trace(cxx) / len(cxx) * np.eye(len(cxx))
    cyy += RIDGE * np.trace(cyy) / len(cyy) * np.eye(len(cyy))
    values, vectors = np.linalg.eigh(cyy)
    whiten = vectors / np.sqrt(values) @ vectors.T
    regression = np.linalg.solve(cxx, cxy @ whiten)
    squared, sides = np.linalg.eigh(whiten @ cxy.T @ regression)
    order = np.argsort(squared)[::-1][: indicators.shape[1] - 1]
    order = order[squared[order] > 1e-12]
    # Of unit variance after division by the correlation, scaled by it again: they cancel.
    directions: NDArray[np.float64] = regression @ sides[:, order]
    return directions
