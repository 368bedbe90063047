"""SH: spectral hashing."""

from __future__ import annotations

import numpy as np

from hashlens.baselines.base import HashMethod, principal_components
from hashlens.errors import InvalidInputError
from hashlens.types import Features, Ids


class SpectralHashing(HashMethod):
    """Signs of the smoothest waves along the principal components.

    Y. Weiss, A. Torralba, R. Fergus, *Spectral hashing*, NIPS 2008, section 3: along each
    component the data is taken as uniform on [a, b]; the eigenfunctions are
    sin(pi / 2 + k pi / (b - a) x) (equation 9) and their eigenvalues grow with k / (b - a)
    (equation 10), so that the h smallest k / (b - a) over all components and all k = 1, 2, ...
    make the bits. More bits than dimensions therefore use higher waves, and are not refused.
    """

    def _learn(self, features: Features, classes: Ids) -> None:
        found = principal_components(features, min(self.bits, features.shape[1]))
        count = min(found.rank, found.directions.shape[1])
        directions = found.directions[:, :count]
        projected = (features - found.mean) @ directions
        low, high = projected.min(axis=0), projected.max(axis=0)
        extent = (high - low).astype(np.float64)
        if not (extent > 0).all():
            raise InvalidInputError(
                "SpectralHashing: expected features that vary, got a constant component; "
                "check how they were computed"
            )
        # Frequencies of every component and wave; the smallest make the bits (stable order).
        waves = np.arange(1, self.bits + 1)
        frequency = np.pi * waves[None, :] / extent[:, None]
        chosen = np.argsort(frequency, axis=None, kind="stable")[: self.bits]
        component, wave = np.unravel_index(chosen, frequency.shape)
        scale = frequency[component, wave].astype(np.float32)
        self.mean, self.weights = found.mean, directions[:, component] * scale
        self.phase = -low[component] * scale
