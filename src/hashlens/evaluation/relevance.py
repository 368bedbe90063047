"""Which images are relevant to a query, and how many stand at each Hamming distance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import to_words
from hashlens.errors import InvalidInputError
from hashlens.protocols import Codes, Features, Ids

Labels = NDArray[Any]
"""Either (n,) int64, -1 where unlabelled, or (n, classes) bool for images of many labels."""

_BLOCK_VALUES = 4_000_000  # values of a block of queries by database: bounds the memory taken


def check_labels(labels: Any, count: int, name: str) -> Labels:
    """Return labels as an array that fits ``count`` images, or raise.

    Parameters
    ----------
    labels : array_like of shape (n,), int, or (n, classes), bool
        One class an image (-1: none), or a row of classes.
    count : int
        Images there are.
    name : str
        What to call them in an error message.

    Raises
    ------
    InvalidInputError
        If shape or dtype is neither of the two, or n is not ``count``.
    """
    array = np.asarray(labels)
    one = array.ndim == 1 and np.issubdtype(array.dtype, np.integer)
    many = array.ndim == 2 and array.dtype == np.bool_
    if not (one or many) or len(array) != count:
        raise InvalidInputError(
            f"labels of the {name}: expected {count} integers, or bool of shape ({count}, classes);"
            f" got {array.dtype} of shape {array.shape}"
        )
    return array


def shares_label(query: Labels, others: Labels) -> NDArray[np.bool_]:
    """Which of the others are relevant: same class, or at least one class in common.

    Parameters
    ----------
    query : ndarray of shape (q,), int64, or (q, classes), bool
        Labels of queries.
    others : ndarray of shape (n,) or (n, classes)
        Labels of the same kind.

    Returns
    -------
    ndarray of shape (q, n), bool
        False wherever either is unlabelled.
    """
    if query.ndim == 1:
        return np.asarray((query[:, None] == others[None, :]) & (query >= 0)[:, None])
    return np.asarray((query.astype(np.float32) @ others.astype(np.float32).T) > 0)


def counts_by_distance(
    database: Codes,
    queries: Codes,
    database_labels: Labels,
    query_labels: Labels,
    *,
    bits: int,
    exclude: Ids | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each query, how many images stand at each Hamming distance, and how many are relevant.

    Parameters
    ----------
    database, queries : ndarray of shape (n, bytes) and (q, bytes), uint8
        Packed codes.
    database_labels, query_labels : ndarray
        Labels, see ``shares_label``.
    bits : int
        Length of a code.
    exclude : ndarray of shape (q,), int64, optional
        A row of the database a query that is not counted (-1: none).

    Returns
    -------
    sizes, relevant : ndarray of shape (q, bits + 1), int64
    """
    words, wanted = to_words(database), to_words(queries)
    sizes = np.zeros((len(queries), bits + 1), dtype=np.int64)
    good = np.zeros_like(sizes)
    step = max(1, _BLOCK_VALUES // max(1, len(database)))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        distances = np.zeros((len(wanted[block]), len(words)), dtype=np.int64)
        for word in range(words.shape[1]):
            distances += np.bitwise_count(words[None, :, word] ^ wanted[block, word, None])
        relevant = shares_label(query_labels[block], database_labels)
        left_out = np.full(len(distances), -1) if exclude is None else exclude[block]
        sizes[block], good[block] = _histograms(distances, relevant, bits + 1, left_out)
    return sizes, good


def euclidean_distances(features: Features, query: Features, ids: Ids) -> NDArray[np.float32]:
    """Euclidean distances of one query (d,) to rows ``ids`` of features (n, d); inf for id -1."""
    found = np.full(len(ids), np.inf, dtype=np.float32)
    held = ids >= 0
    offsets = np.asarray(features[ids[held]], dtype=np.float32) - query
    found[held] = np.sqrt(np.einsum("ij,ij->i", offsets, offsets))
    return found


def hamming_distances(codes: Codes, query: Codes, ids: Ids) -> NDArray[np.float32]:
    """Hamming distances of one code (bytes,) to rows ``ids`` of codes; inf for id -1."""
    found = np.full(len(ids), np.inf, dtype=np.float32)
    held = ids >= 0
    found[held] = np.bitwise_count(codes[ids[held]] ^ query).sum(axis=1)
    return found


def _histograms(
    distances: NDArray[np.int64], relevant: NDArray[np.bool_], levels: int, exclude: Ids
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.arange(len(distances))
    keys = distances * 2 + relevant + (rows * 2 * levels)[:, None]
    counts = np.bincount(keys.ravel(), minlength=len(distances) * levels * 2)
    for row in rows[exclude >= 0]:
        counts[keys[row, exclude[row]]] -= 1
    split = counts.reshape(len(distances), levels, 2)
    return split.sum(axis=2), split[:, :, 1]
