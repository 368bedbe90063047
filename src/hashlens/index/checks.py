"""Checks of what callers hand to an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_bytes
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.euclidean import check_features
from hashlens.index.schema import Meta
from hashlens.protocols import Codes, Encoder, Ids


def check_ids(ids: Any) -> Ids:
    """Ids as an array, each once.

    Raises
    ------
    InvalidInputError
        If they are no whole numbers, or one comes twice.
    """
    given = ids if isinstance(ids, np.ndarray | np.generic | int) else list(ids)
    array = np.atleast_1d(np.asarray(given))
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(
            f"ids: expected whole numbers below 2**63 in one dimension, got {given!r:.80}"
        )
    if len(np.unique(array)) != len(array):
        raise InvalidInputError("ids: expected each id once, got one twice")
    return array.astype(np.int64)


def check_width(codes: Any, bits: int) -> Codes:
    """Packed codes of an index's width."""
    checked = check_codes(codes)
    if checked.shape[1] != code_bytes(bits):
        raise InvalidInputError(
            f"codes: expected {code_bytes(bits)} bytes for the index's {bits} bits, got "
            f"{checked.shape[1]}; use the model that the index was made with"
        )
    return checked


def check_encoded(meta: Meta, codes: Any, features: Any) -> tuple[Codes, NDArray[Any]]:
    """Codes and features of an index's widths, features rounded to its stored type.

    Parameters
    ----------
    meta : Meta
        Of the index.
    codes : array_like of shape (n, bytes), uint8
        Packed codes.
    features : array_like of shape (n, d), floating; or None where the index holds codes only
        Finite, also once they are rounded.

    Raises
    ------
    InvalidInputError
        If a shape differs, or a value is not finite or too large for the stored type.
    """
    codes = check_width(codes, meta.bits)
    if features is None and meta.feature_dim == 0:
        features = np.zeros((len(codes), 0), np.float32)
    array = check_features(features)
    expected = (len(codes), meta.feature_dim)
    if array.shape != expected:
        raise InvalidInputError(f"features: expected shape {expected}, got {array.shape}")
    with np.errstate(over="ignore"):
        stored = array.astype(meta.features, copy=False)
    if not np.isfinite(stored).all():
        row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
        raise InvalidInputError(
            f"features: row {row} holds NaN, infinity or a value too large for {meta.features}; "
            "make the index with features='float32' if the values are meant"
        )
    return codes, stored


def check_lengths(count: int, **given: Sequence[Any] | None) -> None:
    """Raise ``InvalidInputError`` if a sequence does not hold one value an image."""
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise InvalidInputError(f"{name}: expected {count}, one an image, got {len(values)}")


def require_same_model(path: Path, meta: Meta, encoder: Encoder) -> None:
    """Raise ``IndexStoreError`` if the encoder is not the one whose codes the index holds."""
    if (encoder.bits, encoder.feature_dim) != (meta.bits, meta.feature_dim):
        raise IndexStoreError(
            f"{path}: holds codes of {meta.bits} bits and features of {meta.feature_dim} values, "
            f"but the model gives {encoder.bits} and {encoder.feature_dim}; use the index's own "
            "model, or make a new index"
        )
    if meta.fingerprint and encoder.fingerprint != meta.fingerprint:
        raise IndexStoreError(
            f"{path}: made with model {meta.fingerprint[:12]}, but this one is "
            f"{encoder.fingerprint[:12]}, whose codes do not compare; use the index's own model"
            f"{f' ({meta.model})' if meta.model else ''}, or make a new index"
        )
