"""Principal components, and neural codes: features compressed by them."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import finite_features
from hashlens.errors import InvalidInputError
from hashlens.types import Features


class Components(NamedTuple):
    """Principal components of features.

    Attributes
    ----------
    mean : ndarray of shape (d,), float32
    directions : ndarray of shape (d, count), float32
        Orthonormal columns, largest variance first; the largest entry of each is positive.
    variances : ndarray of shape (count,), float64
    rank : int
        Number of directions in which the features vary at all.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float64]
    rank: int


def principal_components(features: Features, count: int) -> Components:
    """The ``count`` directions (at most d) of largest variance of features (n, d)."""
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(features)
    values, vectors = np.linalg.eigh(covariance)
    rank = int((values > values[-1] * 1e-6).sum())
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    directions = (vectors * np.sign(largest)).astype(np.float32)
    return Components(mean.astype(np.float32), directions, np.maximum(values, 0.0), rank)


class NeuralCodes:
    """Features compressed by PCA, for Euclidean search.

    A. Babenko, A. Slesarev, A. Chigorin, V. Lempitsky, *Neural codes for image retrieval*, ECCV
    2014, section 3.1: features of length 1, compressed by PCA, of length 1 again.

    Parameters
    ----------
    dimensions : int
        Width after compression.
    """

    def __init__(self, dimensions: int = 128) -> None:
        self.dimensions = dimensions
        self._components: Components | None = None

    def fit(self, features: Any, labels: Any = None) -> Self:
        """Learn the components.

        Parameters
        ----------
        features : array_like of shape (n, d), float
            Features of the training images; n and d at least ``dimensions``.
        labels : object, optional
            Never read.

        Raises
        ------
        InvalidInputError
            If n or d is below ``dimensions``.
        """
        array = finite_features(features)
        if min(array.shape) < self.dimensions:
            raise InvalidInputError(
                f"NeuralCodes: expected at least {self.dimensions} images of at least "
                f"{self.dimensions} features, got {array.shape}; use fewer dimensions"
            )
        self._components = principal_components(_unit_length(array), self.dimensions)
        return self

    def transform(self, features: Any) -> Features:
        """Compressed features (n, dimensions), float32, each of length 1.

        Raises
        ------
        InvalidInputError
            If not fitted, or shape or values do not fit.
        """
        if self._components is None:
            raise InvalidInputError("NeuralCodes: expected fit before transform")
        mean, directions, _, _ = self._components
        array = finite_features(features)
        if array.shape[1] != len(mean):
            raise InvalidInputError(
                f"features: expected width {len(mean)} as in fit, got {array.shape[1]}"
            )
        return _unit_length(((_unit_length(array) - mean) @ directions).astype(np.float32))


def _unit_length(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Features = np.divide(features, length, out=np.zeros_like(features), where=length > 0)
    return scaled
