"""The self-join finds every pair within the radius once."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming_reference as reference
from hashlens import InvalidInputError, pack_bits
from hashlens.codes import pairs
from hashlens.codes.database import CodeDatabase
from hashlens.codes.pairs import hamming_pairs


def collected(codes: Any, radius: int, allowed: np.ndarray | None = None) -> list[tuple[int, ...]]:
    found = []
    for left, right, distances in hamming_pairs(codes, radius, allowed=allowed):
        assert 0 < len(left) <= pairs.BATCH
        assert (left.dtype, right.dtype, distances.dtype) == (np.int64, np.int64, np.uint16)
        found += list(zip(left.tolist(), right.tolist(), distances.tolist(), strict=True))
    return sorted(found)


def expected(codes: np.ndarray, radius: int, allowed: np.ndarray | None) -> list[tuple[int, ...]]:
    rows = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    between = reference.distances(codes, codes)
    every = ((int(a), int(b), int(between[a, b])) for a, b in combinations(rows, 2))
    return [pair for pair in every if pair[2] <= radius]


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 40, 300]),
    st.sampled_from([1, 6, 8, 16]),
    st.sampled_from([0, 1, 2, 5, 30, 200]),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.sampled_from([None, 0.1, 0.9]),
    st.sampled_from([2, 50, 1 << 20]),
    st.sampled_from([0, 8, 1000]),
)
def test_pairs_equal_all_comparisons(
    seed: int,
    n: int,
    n_bytes: int,
    radius: int,
    flips: float,
    share: float | None,
    batch: int,
    cost: int,
) -> None:
    """Whatever the data, the batch size, and which way of joining is taken (by its cost)."""
    rng = np.random.default_rng(seed)
    middle = rng.integers(0, 256, (4, n_bytes), dtype=np.uint8)
    codes = middle[rng.integers(0, 4, n)] ^ pack_bits(rng.random((n, 8 * n_bytes)) < flips)
    allowed = None if share is None else rng.random(n) < share
    if batch == 2 and n > 40:
        batch = 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BATCH", batch)
        patch.setattr(pairs, "_SORTED_COST", cost)
        patch.setattr(pairs, "_TILE_ROWS", 32)
        patch.setattr(pairs, "_TILE_COLUMNS", 100)
        patch.setattr(pairs, "_COMPARISONS", 3200)
        assert collected(codes, radius, allowed) == expected(codes, radius, allowed)


def test_pairs_of_a_prepared_database() -> None:
    codes = np.random.default_rng(1).integers(0, 4, (200, 6), dtype=np.uint8)
    assert collected(CodeDatabase(codes), 3) == expected(codes, 3, None)


def test_heavy_duplicates_stream_in_batches() -> None:
    codes = np.repeat(np.array([[0] * 8, [1] * 8], np.uint8), 2500, axis=0)
    count = longest = 0
    for left, right, distances in hamming_pairs(codes, 8):
        assert (left < right).all()
        crossing = (left < 2500) & (right >= 2500)
        np.testing.assert_array_equal(distances, np.where(crossing, 8, 0))
        count, longest = count + len(left), max(longest, len(left))
    assert count == 5000 * 4999 // 2
    assert longest <= pairs.BATCH


def test_bad_arguments_are_refused_at_once() -> None:
    with pytest.raises(InvalidInputError, match="radius"):
        hamming_pairs(np.zeros((2, 2), np.uint8), -1)
    with pytest.raises(InvalidInputError, match="allowed"):
        hamming_pairs(np.zeros((2, 2), np.uint8), 1, allowed=np.ones(3, bool))
