"""Merging shards' results gives what one search over all of them gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hamming_reference as reference
from hashlens import SearchResult
from hashlens.distributed.cluster import merge


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    shards=st.integers(1, 5),
    k=st.integers(1, 45),
)
def test_shards_merge_to_one_search(seed: int, n: int, shards: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    database = rng.integers(0, 4, (n, 1), dtype=np.uint8)  # few values: ties everywhere
    queries = rng.integers(0, 4, (3, 1), dtype=np.uint8)
    shard = rng.integers(0, shards, n)  # in no order, so that ties are settled by id alone
    parts = []
    for i in range(shards):
        rows = np.flatnonzero(shard == i)
        distances, ids = reference.topk(database[rows], queries, k)
        parts.append(SearchResult(rows[ids], distances))
    merged = merge(parts, k)
    distances, ids = reference.topk(database, queries, k)
    np.testing.assert_array_equal(merged.ids, ids)
    np.testing.assert_array_equal(merged.distances, distances)


@pytest.mark.parametrize(("dtype", "far"), [(np.uint16, 65535), (np.float32, np.inf)])
def test_padding_goes_last(dtype: type, far: float) -> None:
    parts = [
        SearchResult(np.array([[4, -1]]), np.array([[far, 0]], dtype)),
        SearchResult(np.array([[-1, 2]]), np.array([[0, 7]], dtype)),
    ]
    merged = merge(parts, 3)
    assert merged.ids.tolist() == [[2, 4, -1]]
    assert merged.distances.tolist() == [[7, far, far]]
