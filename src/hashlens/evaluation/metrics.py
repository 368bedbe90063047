"""Retrieval metrics: pure functions of ranked relevance, or of counts by distance.

Two kinds of input. *Ranked relevance* is a bool array (q, m), nearest first, False past the end
of a query's results; its order is the searcher's, so ties are in the order of ids. *Counts by
distance* are integers (q, g): how many images, and how many relevant ones, are at each of g
distances, nearest first; no order inside a distance is assumed, so scores made of them are
expectations over all orders of tied images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import to_words
from hashlens.errors import InvalidInputError
from hashlens.types import Codes, Ids

CUTOFF = 1000
PRECISION_AT = (1, 5, 10, 20, 50, 100, 200, 400, 600, 800, 1000)
NDCG_AT = (10, 100, 1000)
RECALL_LEVELS = tuple(share / 20 for share in range(1, 21))
"""Shares of a query's relevant images at which the precision-recall curve has its points."""

_BLOCK_VALUES = 4_000_000  # values of a block of queries by database: bounds the memory taken

Scores = NDArray[np.float64]
LabelArray = NDArray[Any]
"""Either (n,) int64, -1 where unlabelled, or (n, classes) bool for images of many labels."""


def precision_at_k(relevant: Any, ks: Sequence[int]) -> Scores:
    """Share of the first k results that are relevant; always divided by k.

    A query with fewer than k results is scored as if wrong ones filled the rest, as the authors'
    ``analysis/precision.m`` does.

    Parameters
    ----------
    relevant : array_like of shape (q, m), bool
        Ranked relevance.
    ks : sequence of int
        Each at least 1.

    Returns
    -------
    ndarray of shape (q, len(ks)), float64

    Raises
    ------
    InvalidInputError
        If the shape is not (q, m) or a k is below 1.

    Examples
    --------
    >>> precision_at_k([[True, False, True]], [1, 2, 4])
    array([[1. , 0.5, 0.5]])
    """
    ranked = _ranked(relevant)
    _check_ks(ks)
    found = np.zeros((len(ranked), ranked.shape[1] + 1), dtype=np.int64)
    np.cumsum(ranked, axis=1, out=found[:, 1:])
    wanted = np.asarray(ks, dtype=np.int64)
    return np.asarray(found[:, np.minimum(wanted, ranked.shape[1])] / wanted, dtype=np.float64)


def average_precision(relevant: Any, cutoff: int = CUTOFF) -> Scores:
    """Average precision over the first ``cutoff`` results, in the authors' way.

    Mean of the precision at the rank of each relevant result among the first ``cutoff``: the
    divisor is the number of relevant results found there, not in the database (the authors'
    ``analysis/precision.m``). 0 where none is found.

    Parameters
    ----------
    relevant : array_like of shape (q, m), bool
        Ranked relevance.
    cutoff : int
        Results past it do not count.

    Returns
    -------
    ndarray of shape (q,), float64

    Raises
    ------
    InvalidInputError
        If the shape is not (q, m).

    Examples
    --------
    >>> average_precision([[True, False, True]])
    array([0.83333333])
    """
    ranked = _ranked(relevant)[:, :cutoff]
    found = np.cumsum(ranked, axis=1)
    precision = found / np.arange(1, ranked.shape[1] + 1)
    total = np.where(ranked, precision, 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(ranked.sum(axis=1), 1), dtype=np.float64)


def precision_at_recall(relevant: Any, levels: Sequence[float] = RECALL_LEVELS) -> Scores:
    """Precision at the rank where a share of a query's relevant images is reached.

    The measured precision, not the highest at this recall or above. 0 where a query has no
    relevant image.

    Parameters
    ----------
    relevant : array_like of shape (q, n), bool
        Ranked relevance of the whole database.
    levels : sequence of float
        Shares, above 0 and up to 1.

    Returns
    -------
    ndarray of shape (q, len(levels)), float64

    Raises
    ------
    InvalidInputError
        If the shape is not (q, n) or a share is out of range.

    Examples
    --------
    >>> precision_at_recall([[True, False, True]], [0.5, 1])
    array([[1.        , 0.66666667]])
    """
    ranked, shares = _ranked(relevant), np.asarray(levels, dtype=np.float64)
    if bool((shares <= 0).any()) or bool((shares > 1).any()):
        raise InvalidInputError(f"levels: expected above 0 and up to 1, got {list(levels)}")
    scores = np.zeros((len(ranked), len(shares)))
    for query, row in enumerate(ranked):
        ranks = np.flatnonzero(row) + 1
        if len(ranks):
            wanted = np.ceil(shares * len(ranks) - 1e-9).astype(np.int64)
            scores[query] = wanted / ranks[wanted - 1]
    return scores


def ndcg_at_k(shared: Any, best: Any, ks: Sequence[int]) -> Scores:
    """Normalised discounted cumulative gain, graded by the number of labels that are shared.

    An image that shares s labels with the query adds (2^s - 1) / log2(1 + rank); the sum over the
    first k results is divided by that of the best possible order (Järvelin, Kekäläinen 2002; for
    hashing with several labels: Zhao et al., CVPR 2015, section 4.2). 0 where no image shares one.

    Parameters
    ----------
    shared : array_like of shape (q, m), int
        Labels shared with each result, nearest first; 0 past the end of a query's results.
    best : array_like of shape (q, b), int
        Labels shared with the images of the database, in any order: all of them, or at least the
        largest k numbers of each query.
    ks : sequence of int
        Each at least 1.

    Returns
    -------
    ndarray of shape (q, len(ks)), float64

    Raises
    ------
    InvalidInputError
        If a k is below 1.

    Examples
    --------
    >>> ndcg_at_k([[0, 1]], [[1, 0, 0]], [2]).round(3)
    array([[0.631]])
    """
    _check_ks(ks)
    ideal = -np.sort(-np.asarray(best, dtype=np.int64), axis=1)
    scores = np.zeros((len(ideal), len(ks)))
    for place, k in enumerate(ks):
        most = _discounted_gain(ideal[:, :k])
        found = _discounted_gain(np.asarray(shared, dtype=np.int64)[:, :k])
        scores[:, place] = found / np.where(most > 0, most, 1.0)
    return scores


def _discounted_gain(shared: NDArray[np.int64]) -> Scores:
    discounts = 1 / np.log2(np.arange(2, shared.shape[1] + 2))
    return np.asarray((np.exp2(shared) - 1) @ discounts, dtype=np.float64)


def expected_average_precision(sizes: Any, relevant: Any, cutoff: int = CUTOFF) -> Scores:
    """Expectation of ``average_precision`` when tied images are in uniformly random order.

    Exact, in closed form. In a group of n tied images, r of them relevant, that starts after c
    images of which R are relevant, the image at place i is relevant with probability r / n, and
    then has R + (i - 1)(r - 1) / (n - 1) relevant ones before it in expectation (McSherry, Najork
    2008, "Computing information retrieval performance measures efficiently in the presence of
    tied scores", section 3). The cutoff may cut the last group to t places; the number x of
    relevant ones in them is hypergeometric, and with it the divisor (relevant ones found), so the
    expectation is taken over x: given x, the t places are themselves a group in random order.

    Parameters
    ----------
    sizes : array_like of shape (q, g), int
        Images at each distance, nearest first; 0 is allowed.
    relevant : array_like of shape (q, g), int
        Relevant images at each distance.
    cutoff : int
        Results past it do not count.

    Returns
    -------
    ndarray of shape (q,), float64

    Raises
    ------
    InvalidInputError
        If the counts do not fit each other.
    """
    size, good = _counts(sizes, relevant)
    before = np.cumsum(size, axis=1) - size
    good_before = np.cumsum(good, axis=1) - good
    whole = before + size <= cutoff
    kept = np.where(whole, good, 0)
    gains = _group_gain(np.where(whole, size, 0), kept, before, good_before, cutoff)
    gain, found = gains.sum(axis=1), kept.sum(axis=1)
    scores = np.asarray(gain / np.maximum(found, 1), dtype=np.float64)
    for query in np.flatnonzero((before < cutoff).any(axis=1) & ~whole.all(axis=1)):
        group = int(np.argmax(~whole[query]))
        places = cutoff - int(before[query, group])
        if places > 0:
            scores[query] = _with_cut_group(
                float(gain[query]),
                int(found[query]),
                int(size[query, group]),
                int(good[query, group]),
                places,
                int(before[query, group]),
            )
    return scores


def precision_within_radius(sizes: Any, relevant: Any, radius: int) -> Scores:
    """Share of relevant images among all within a Hamming distance; 0 where there is none.

    Parameters
    ----------
    sizes : array_like of shape (q, g), int
        Images at distances 0, 1, ..., g - 1.
    relevant : array_like of shape (q, g), int
        Relevant images at these distances.
    radius : int
        Distances up to it count.

    Returns
    -------
    ndarray of shape (q,), float64

    Raises
    ------
    InvalidInputError
        If the counts do not fit each other.
    """
    size, good = _counts(sizes, relevant)
    held = size[:, : radius + 1].sum(axis=1)
    return np.asarray(good[:, : radius + 1].sum(axis=1) / np.maximum(held, 1), dtype=np.float64)


def check_labels(labels: Any, count: int, name: str) -> LabelArray:
    """Return labels as an array that fits ``count`` images, or raise."""
    array = np.asarray(labels)
    one = array.ndim == 1 and np.issubdtype(array.dtype, np.integer)
    many = array.ndim == 2 and array.dtype == np.bool_
    if not (one or many) or len(array) != count:
        raise InvalidInputError(
            f"labels of the {name}: expected {count} integers, or bool of shape ({count}, classes);"
            f" got {array.dtype} of shape {array.shape}"
        )
    return array


def shares_label(query: LabelArray, others: LabelArray) -> NDArray[np.bool_]:
    """Which of the others are relevant: same class, or at least one class in common.

    Parameters and shape are those of ``shared_labels``; False wherever either is unlabelled.
    """
    return np.asarray(shared_labels(query, others) > 0)


def shared_labels(query: LabelArray, others: LabelArray) -> NDArray[np.int32]:
    """How many classes queries and others have in common."""
    if query.ndim == 1:
        same = (query[:, None] == others[None, :]) & (query >= 0)[:, None]
        return np.asarray(same, dtype=np.int32)
    return np.asarray(query.astype(np.float32) @ others.astype(np.float32).T, dtype=np.int32)


def counts_by_distance(
    database: Codes,
    queries: Codes,
    database_labels: LabelArray,
    query_labels: LabelArray,
    *,
    bits: int,
    exclude: Ids | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each query, count the images, and the relevant ones, at each Hamming distance."""
    sizes = np.zeros((len(queries), bits + 1), dtype=np.int64)
    good = np.zeros_like(sizes)
    step = max(1, _BLOCK_VALUES // max(1, len(database)))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        distances = pairwise_hamming(database, queries[block])
        relevant = shares_label(query_labels[block], database_labels)
        # One number for each query, distance and relevance.
        rows = np.arange(len(distances))
        keys = distances * 2 + relevant + (rows * 2 * (bits + 1))[:, None]
        counts = np.bincount(keys.ravel(), minlength=len(rows) * (bits + 1) * 2)
        if exclude is not None:
            held = rows[exclude[block] >= 0]
            counts[keys[held, exclude[block][held]]] -= 1
        split = counts.reshape(len(rows), bits + 1, 2)
        sizes[block], good[block] = split.sum(axis=2), split[:, :, 1]
    return sizes, good


def pairwise_hamming(database: Codes, queries: Codes) -> NDArray[np.int64]:
    """Hamming distances (q, n) of packed codes (q, bytes) and (n, bytes)."""
    words, wanted = to_words(database), to_words(queries)
    distances = np.zeros((len(wanted), len(words)), dtype=np.int64)
    for word in range(words.shape[1]):
        distances += np.bitwise_count(words[None, :, word] ^ wanted[:, word, None])
    return distances


def _group_gain(
    size: NDArray[np.int64],
    good: NDArray[Any],
    before: NDArray[np.int64],
    good_before: NDArray[np.int64],
    cutoff: int,
) -> Scores:
    """Expected sum of precisions at the relevant places of each group; see the caller."""
    # With c images before, sum over i of 1 / (c + i) and of (i - 1) / (c + i).
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, cutoff + 1))])
    start = np.minimum(before, cutoff)
    end = np.minimum(before + size, cutoff)
    inverse = harmonic[end] - harmonic[start]
    rising = (end - start) - (start + 1) * inverse
    pairs = np.where(size > 1, (good - 1) / np.maximum(size - 1, 1), 0.0)
    gain = good / np.maximum(size, 1) * ((good_before + 1) * inverse + pairs * rising)
    return np.asarray(gain, dtype=np.float64)


def _with_cut_group(
    gain: float, found: int, size: int, good: int, places: int, before: int
) -> float:
    """Expected average precision where the last group has only ``places`` places."""
    x = np.arange(max(0, places - (size - good)), min(good, places) + 1)
    # Hypergeometric, by the ratio of neighbours in logarithms, so that no factorial is needed.
    low = x[:-1].astype(np.float64)
    ratio = (good - low) * (places - low) / ((low + 1) * (size - good - places + low + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratio))])
    chance = np.exp(logs - logs.max())
    chance /= chance.sum()
    full = np.full(x.shape, places, dtype=np.int64)
    start = np.full(x.shape, before, dtype=np.int64)
    more = _group_gain(full, x, start, np.full_like(start, found), before + places)
    return float((chance * (gain + more) / np.maximum(found + x, 1)).sum())


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise InvalidInputError(f"ks: expected 1 or more, got {list(ks)}")


def _ranked(relevant: Any) -> NDArray[np.bool_]:
    ranked = np.asarray(relevant, dtype=np.bool_)
    if ranked.ndim != 2:
        raise InvalidInputError(f"relevant: expected shape (q, m), got {ranked.shape}")
    return ranked


def _counts(sizes: Any, relevant: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    size, good = np.asarray(sizes, dtype=np.int64), np.asarray(relevant, dtype=np.int64)
    if size.ndim != 2 or size.shape != good.shape:
        raise InvalidInputError(
            f"counts: expected two arrays of one shape (q, g), got {size.shape} and {good.shape}"
        )
    if bool((good < 0).any()) or bool((good > size).any()):
        raise InvalidInputError("counts: expected 0 <= relevant <= images at every distance")
    return size, good
