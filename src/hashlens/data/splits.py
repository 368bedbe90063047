"""Seeded, stratified splits of labelled rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlens.errors import InvalidInputError

Rows = NDArray[np.int64]


def split_validation(labels: ArrayLike, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Cut a validation set off labelled rows, with the same share of each class.

    Every class keeps at least one row for training, so that none is seen in validation only.
    Which rows are taken depends on labels, fraction and seed alone.

    Parameters
    ----------
    labels : array_like of shape (n,), int
        Class of each row; -1 (unlabelled) is in neither part.
    fraction : float
        Share of the labelled rows for validation, from 0 up to, not including, 1.
    seed : int
        Of NumPy's PCG64 generator.

    Returns
    -------
    train_rows, validation_rows : ndarray of int64
        Positions in ``labels``, each ascending.

    Raises
    ------
    InvalidInputError
        If fraction or labels do not fit.
    """
    values = np.asarray(labels)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise InvalidInputError(
            f"labels: expected whole numbers of shape (n,), got {values.dtype} of {values.shape}"
        )
    if not 0 <= fraction < 1:
        raise InvalidInputError(f"fraction: expected from 0 to below 1, got {fraction}")
    rng = np.random.default_rng(seed)
    present, counts = np.unique(values[values >= 0], return_counts=True)
    held_out = _shares(counts, fraction, rng)
    validation = [
        rng.permutation(np.flatnonzero(values == label))[:count]
        for label, count in zip(present, held_out, strict=True)
    ]
    chosen = np.zeros(len(values), bool)
    chosen[np.concatenate(validation) if validation else []] = True
    return np.flatnonzero(~chosen & (values >= 0)), np.flatnonzero(chosen)


def _shares(counts: Rows, fraction: float, rng: np.random.Generator) -> Rows:
    """Rows held out of each class: largest remainders, so that the total is right."""
    exact = counts * fraction
    shares: Rows = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    tie_break = rng.random(len(counts))
    order = np.lexsort((tie_break, -(exact - shares)))
    shares[order[:missing]] += 1
    return np.asarray(np.minimum(shares, counts - 1), np.int64)
