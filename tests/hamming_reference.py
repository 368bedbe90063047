"""Plain, readable search: the oracle of every fast path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlens.types import Codes, Ids


def distances(database: Codes, queries: Codes) -> NDArray[np.uint16]:
    """All Hamming distances, shape (q, n), of packed codes (n, bytes) and (q, bytes)."""
    result = np.zeros((len(queries), len(database)), dtype=np.uint16)
    for row, query in zip(result, queries, strict=True):
        row[:] = np.bitwise_count(database ^ query).sum(axis=1, dtype=np.uint16)
    return result


def topk(
    database: Codes, queries: Codes, k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint16], Ids]:
    """The k nearest codes of each query, ordered by (distance, id); see ``search.hamming_topk``."""
    ids = np.arange(len(database)) if allowed is None else np.flatnonzero(allowed)
    found = distances(database[ids], queries)
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1), ids[order].astype(np.int64)


def radius(
    database: Codes, queries: Codes, limit: int, allowed: NDArray[np.bool_] | None = None
) -> list[tuple[NDArray[np.uint16], Ids]]:
    """For each query the codes within ``limit`` bits, ordered by (distance, id)."""
    nearest, ids = topk(database, queries, len(database), allowed)
    return [(d[d <= limit], i[d <= limit]) for d, i in zip(nearest, ids, strict=True)]
