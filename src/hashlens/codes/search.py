"""Exact Hamming search over packed codes: checks, threads, order (distance, id)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes import reference
from hashlens.codes.packing import check_codes
from hashlens.errors import InvalidInputError
from hashlens.protocols import Codes, Ids


class RadiusResult(NamedTuple):
    """Results of all queries one after the other.

    Attributes
    ----------
    distances : ndarray of shape (m,), uint16
    ids : ndarray of shape (m,), int64
    offsets : ndarray of shape (q + 1,), int64
        Query i's results are ``offsets[i]:offsets[i + 1]``, ordered by (distance, id).
    """

    distances: NDArray[np.uint16]
    ids: Ids
    offsets: NDArray[np.int64]


def hamming_topk(
    database: Any, queries: Any, k: int, *, allowed: Any = None
) -> tuple[NDArray[np.uint16], Ids]:
    """The k nearest codes of each query, exactly.

    Parameters
    ----------
    database : array_like of shape (n, bytes), uint8
        Packed codes (``hashlens.pack_bits``); may be read-only or memory-mapped.
    queries : array_like of shape (q, bytes), uint8
        Packed codes of the same width.
    k : int
        Results a query; more than there are returns what there is.
    allowed : array_like of shape (n,), bool, optional
        Only codes where this is true are results.

    Returns
    -------
    distances : ndarray of shape (q, min(k, allowed)), uint16
        In bits.
    ids : ndarray of the same shape, int64
        Rows of ``database``, ordered by (distance, id).

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or k do not fit.
    """
    database, queries, mask = _check(database, queries, allowed)
    if k < 0:
        raise InvalidInputError(f"k: expected 0 or more, got {k}")
    return reference.topk(database, queries, k, mask)


def hamming_radius(
    database: Any, queries: Any, radius: int, *, allowed: Any = None
) -> RadiusResult:
    """All codes within ``radius`` bits of each query; parameters as in ``hamming_topk``.

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or radius do not fit.
    """
    database, queries, mask = _check(database, queries, allowed)
    if radius < 0:
        raise InvalidInputError(f"radius: expected 0 or more, got {radius}")
    found = reference.radius(database, queries, radius, mask)
    counts = [len(ids) for _, ids in found]
    return RadiusResult(
        np.concatenate([d for d, _ in found] or [np.zeros(0, np.uint16)]),
        np.concatenate([i for _, i in found] or [np.zeros(0, np.int64)]),
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
    )


def _check(
    database: Any, queries: Any, allowed: Any
) -> tuple[Codes, Codes, NDArray[np.bool_] | None]:
    database, queries = check_codes(database, "database"), check_codes(queries, "queries")
    if database.shape[1] != queries.shape[1]:
        raise InvalidInputError(
            f"queries: expected {database.shape[1]} bytes a code as in the database, "
            f"got {queries.shape[1]}; both must come from the same model"
        )
    if allowed is None:
        return database, queries, None
    mask = np.asarray(allowed)
    if mask.dtype != np.bool_ or mask.shape != (len(database),):
        raise InvalidInputError(
            f"allowed: expected bool of shape ({len(database)},), got {mask.dtype} of {mask.shape}"
        )
    return database, queries, mask
