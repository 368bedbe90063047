"""Asymmetric distances: latent values of a query against stored bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import pack_bits, unpack_bits
from hashlens.types import Codes


def asymmetric_distances(codes: Codes, latent: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances of a query's latent values from stored bits.

    The distance is the sum of abs(latent_j) over the bits j that differ from the query's own: the
    asymmetric distance of Gordo et al., *Asymmetric Distances for Binary Embeddings* (TPAMI 2014),
    up to a constant per query. A bit that the query is unsure of costs little. Equal codes have
    equal distances, to the last digit.

    Parameters
    ----------
    codes : ndarray of shape (m, ceil(bits / 8)), uint8
        Packed codes.
    latent : ndarray of shape (bits,), float32
        Layer H of the query before the sigmoid; bit j of its code is 1 where it is at least 0.

    Returns
    -------
    ndarray of shape (m,), float32
    """
    weights = np.zeros(8 * codes.shape[1], np.float32)
    weights[: len(latent)] = np.abs(latent)
    # What each value of a byte of differing bits adds, byte by byte.
    table = weights.reshape(-1, 8) @ _BITS_OF_BYTES.T
    differing = codes ^ pack_bits(latent[None] >= 0)
    distances: NDArray[np.float32] = table[np.arange(codes.shape[1]), differing].sum(axis=1)
    return distances


_BITS_OF_BYTES = unpack_bits(np.arange(256, dtype=np.uint8)[:, None], 8).astype(np.float32)
