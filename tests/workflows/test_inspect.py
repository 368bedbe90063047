"""Statistics of codes, against values worked by hand and NumPy's and scikit-learn's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlens import InvalidInputError, pack_bits
from hashlens.workflows.inspect import (
    bit_correlation,
    bit_entropy,
    code_occupancy,
    inspect_codes,
    radius_curve,
)


def test_entropy_by_hand():
    found = bit_entropy(np.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(found, [0, 2 - 0.75 * np.log2(3), 1, 0])
    assert not np.signbit(found).any()


def test_correlation_equals_numpys_where_bits_change():
    bits = np.random.default_rng(0).integers(0, 2, (200, 9), dtype=np.uint8)
    bits[:, 3] = 1 - bits[:, 0]
    np.testing.assert_allclose(bit_correlation(bits), np.corrcoef(bits.T), atol=1e-12)
    bits[:, 5] = 1
    found = bit_correlation(bits)
    assert found[5].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert found[0, 3] == pytest.approx(-1)


def test_occupancy_by_hand():
    codes = np.array([[1], [1], [1], [1], [2], [2], [3], [4]], np.uint8)
    # Shares 1/2, 1/4, 1/8, 1/8: entropy 1/2 + 1/2 + 3/8 + 3/8 = 1.75 bits.
    assert code_occupancy(codes) == (4, 2, 4, 1.75)


def test_radius_curve_by_hand():
    # Class 0 at 0 and 1 ones; class 1 at 8 and 6 ones; one unlabelled image is left out.
    codes = pack_bits(np.arange(8) < np.array([0, 1, 8, 6, 3])[:, None])
    labels = np.array([0, 0, 1, 1, -1])
    found = radius_curve(codes, labels, 8, 100, 0)
    assert found.within.tolist() == [0, 2, 2, 0, 0, 0, 0, 0, 0]
    assert found.between.tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 2]
    assert found.precision[:3].tolist() == [0, 0.5, 1]
    assert found.recall[:3].tolist() == [0, 0.5, 1]
    assert found.empty[:3].tolist() == [1, 0.5, 0]
    assert found.pool[[2, 8]].tolist() == [pytest.approx(1 / 3), 1]
    assert found.best == 2
    assert found.queries == 4


def test_classes_of_one_image_have_no_radius():
    codes = pack_bits(np.eye(8, dtype=bool))
    assert radius_curve(codes, np.arange(8), 8, 100, 0) is None
    found = inspect_codes(codes, np.full(8, -1), bits=8).to_dict()
    assert found["radius"] is None
    assert found["radii"] is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(8, 20))
def test_every_pair_is_counted_once_from_each_side(seed, count, bits):
    rng = np.random.default_rng(seed)
    codes, labels = pack_bits(rng.integers(0, 2, (count, bits))), rng.integers(0, 2, count)
    found = radius_curve(codes, labels, bits, count, 0)
    if found is None:
        return
    assert (found.within + found.between).sum() == found.queries * (count - 1)
    assert (np.diff(found.recall) >= -1e-12).all()
    assert found.recall[-1] == pytest.approx(1)
    assert found.pool[-1] == pytest.approx(1)


def test_stuck_and_twin_bits_are_named():
    bits = np.random.default_rng(1).integers(0, 2, (400, 10))
    bits[:, 2] = 0
    bits[1:, 7] = 1
    bits[:, 9] = 1 - bits[:, 4]
    found = inspect_codes(pack_bits(bits), np.arange(400) % 2, bits=10)
    assert found.stuck == [2, 7]
    assert found.twins == [(4, 9)]
    assert 0 < found.mean_correlation < 0.1


def test_the_same_seed_looks_at_the_same_images():
    rng = np.random.default_rng(2)
    codes, labels = rng.integers(0, 256, (300, 2), dtype=np.uint8), rng.integers(0, 3, 300)
    first, again, other = (
        inspect_codes(codes, labels, bits=16, queries=50, seed=seed).to_dict() for seed in (1, 1, 2)
    )
    assert json.dumps(first) == json.dumps(again)
    assert first["radii"] != other["radii"]


def test_many_labels_count_as_the_same_class_where_one_is_shared():
    codes = pack_bits(np.arange(8) < np.array([0, 1, 8])[:, None])
    many = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
    found = inspect_codes(codes, many, bits=8)
    assert found.radii is not None
    assert found.radii.within.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0]
    assert found.radii.best == 1


def test_one_code_is_too_few():
    with pytest.raises(InvalidInputError, match="at least two codes"):
        inspect_codes(np.zeros((1, 2), np.uint8), np.zeros(1, np.int64), bits=16)
