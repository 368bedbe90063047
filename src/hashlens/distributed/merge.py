"""Results of shards to the result of the whole, in the order (distance, id)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hashlens.protocols import SearchResult

_FAR: dict[str, Any] = {"u": np.uint16(65535), "f": np.float32(np.inf)}


def merge(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The k nearest of several results of the same q queries.

    Parameters
    ----------
    parts : sequence of SearchResult
        Each of shape (q, any), with ids of the whole; id -1 is padding. At least one.
    k : int
        Results a query at most.

    Returns
    -------
    SearchResult
        Of shape (q, min(k, columns in all)), ordered by (distance, id), padded with id -1.
    """
    ids = np.concatenate([part.ids for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    distances = np.where(ids < 0, _FAR[distances.dtype.kind], distances)
    # padding goes last, also behind a real result that is as far as can be
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), distances), axis=1)[:, :k]
    return SearchResult(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )
