"""What every baseline promises, whatever its method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hamming_reference import topk
from hashlens import InvalidInputError, unpack_bits
from hashlens.baselines import HashMethod, create_method, method_names

METHODS = method_names()
SUPERVISED = [name for name in METHODS if create_method(name, 8).supervised]
RANDOM = ("LSH", "ITQ", "BRE", "MLH", "ITQ-CCA", "KSH")


class Unreadable:
    """Labels that fail the test when anything is read from them."""

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise AssertionError("labels were read")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"labels were read: {name}")

    __len__ = __iter__ = __getitem__ = __array__


def clusters(n: int = 600, width: int = 40, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Five classes, each two blobs apart from each other, in noise that says nothing of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, size=n)
    half = rng.integers(2, size=n)
    features = 2.0 * rng.standard_normal((n, width))
    features[:, :10] = np.random.default_rng(99).normal(0, 2, (2, 5, 10))[half, labels]
    features[:, :10] += 0.7 * rng.standard_normal((n, 10))
    return features.astype(np.float32), labels


def quick(name: str, bits: int, seed: int = 0) -> HashMethod:
    options: dict[str, dict[str, int]] = {
        "KSH": {"anchors": 100},
        "BRE": {"anchors": 20, "sweeps": 2},
        "MLH": {"steps": 500},
    }
    return create_method(name, bits, seed=seed, **options.get(name, {}))


def mean_precision(method: HashMethod, k: int = 50) -> float:
    features, labels = clusters()
    queries, wanted = clusters(200, seed=1)
    method.fit(features, labels)
    _, ids = topk(method.encode(features), method.encode(queries), k)
    return float((labels[ids] == wanted[:, None]).mean())


@pytest.mark.parametrize("name", METHODS)
def test_codes_are_packed_padded_and_repeatable(name: str) -> None:
    features, labels = clusters(150)
    codes = quick(name, 12).fit(features, labels).encode(features)
    assert codes.shape == (150, 2)
    assert codes.dtype == np.uint8
    assert not unpack_bits(codes)[:, 12:].any()
    again = quick(name, 12).fit(features, labels).encode(features)
    np.testing.assert_array_equal(codes, again)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_other_codes(name: str) -> None:
    features, labels = clusters(150)
    codes = [quick(name, 12, seed=seed).fit(features, labels).encode(features) for seed in (0, 1)]
    assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize("name", METHODS)
def test_bits_tell_images_apart(name: str) -> None:
    features, labels = clusters()
    bits = unpack_bits(quick(name, 16).fit(features, labels).encode(features), 16)
    share = bits.mean(axis=0)
    assert ((share > 0.02) & (share < 0.98)).mean() > 0.8


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=10, deadline=None)
@given(row=st.integers(0, 149), copies=st.integers(1, 20))
def test_equal_points_have_equal_codes(name: str, row: int, copies: int) -> None:
    features, labels = clusters(150)
    method = quick(name, 16).fit(features, labels)
    codes = method.encode(np.repeat(features[row : row + 1], copies, axis=0))
    assert (codes == codes[0]).all()


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(SUPERVISED)))
def test_unsupervised_methods_read_no_labels(name: str) -> None:
    features, _ = clusters(150)
    create_method(name, 16).fit(features, Unreadable()).encode(features)


@pytest.mark.parametrize("name", SUPERVISED)
def test_labels_help(name: str) -> None:
    assert mean_precision(quick(name, 24)) > mean_precision(quick("ITQ", 24)) + 0.05


@pytest.mark.parametrize("name", METHODS)
def test_bad_features_are_named(name: str) -> None:
    features, labels = clusters(100)
    spoilt = features.copy()
    spoilt[7, 3] = np.nan
    spoilt[9, 3] = np.inf
    with pytest.raises(InvalidInputError, match=r"2 of 100 rows, first in row 7"):
        quick(name, 16).fit(spoilt, labels)
    method = quick(name, 16).fit(features, labels)
    with pytest.raises(InvalidInputError, match=r"2 of 100 rows, first in row 7"):
        method.encode(spoilt)
    with pytest.raises(InvalidInputError, match="expected width 40 as in fit, got 39"):
        method.encode(features[:, 1:])
    with pytest.raises(InvalidInputError, match="expected fit before encode"):
        quick(name, 16).encode(features)


@pytest.mark.parametrize("name", METHODS)
def test_too_few_or_equal_images_are_refused(name: str) -> None:
    features, labels = clusters(100)
    with pytest.raises(InvalidInputError, match="at least 16 training images for 16 bits, got 15"):
        quick(name, 16).fit(features[:15], labels[:15])
    with pytest.raises(InvalidInputError, match="100 equal rows"):
        quick(name, 16).fit(np.ones_like(features), labels)


@pytest.mark.parametrize("name", METHODS)
def test_a_constant_feature_changes_nothing_of_use(name: str) -> None:
    features, labels = clusters(200)
    wider = np.hstack([features, np.full((200, 1), 7, np.float32)])
    codes = quick(name, 16).fit(wider, labels).encode(wider)
    assert len(np.unique(codes, axis=0)) > 5


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_methods_say_which_labels_they_need(name: str) -> None:
    features, labels = clusters(100)
    with pytest.raises(InvalidInputError, match="expected labels in fit, got none"):
        quick(name, 16).fit(features)
    with pytest.raises(InvalidInputError, match="at least two classes, got one"):
        quick(name, 16).fit(features, np.zeros(100, np.int64))
    with pytest.raises(InvalidInputError, match="got 1 unlabelled"):
        quick(name, 16).fit(features, np.where(np.arange(100) == 3, -1, labels))
    with pytest.raises(InvalidInputError, match="expected 100 words or numbers"):
        quick(name, 16).fit(features, labels[:99])


@pytest.mark.parametrize("name", METHODS)
def test_more_bits_than_dimensions_are_refused_or_differ(name: str) -> None:
    features, labels = clusters(200, width=20)
    method, refused = quick(name, 32), ""
    try:
        method.fit(features, labels)
    except InvalidInputError as error:
        refused = str(error)
    if refused or name == "ITQ":
        assert "32 bits, got 20; use " in refused
        with pytest.raises(InvalidInputError, match="expected fit before encode"):
            method.encode(features)
    else:
        bits = unpack_bits(method.encode(features), 32)
        assert len(np.unique(bits, axis=1).T) > 20


def test_itq_refuses_more_bits_than_directions() -> None:
    features, _ = clusters(200, width=20)
    with pytest.raises(InvalidInputError, match=r"at least 32 directions, got 20"):
        create_method("ITQ", 32).fit(np.repeat(features, 2, axis=1))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"expected one of BRE, ITQ, .*, got 'XYZ'"):
        create_method("XYZ", 32)
