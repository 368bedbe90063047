"""Splits, what training asks of labels, and balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlens import InvalidInputError, SourceError
from hashlens.data.labels import (
    balanced_weights,
    class_counts,
    imbalance,
    require_labels,
    split_validation,
)
from hashlens.data.source import FileImages, Source

label_lists = st.lists(st.integers(-1, 6), max_size=120)


@given(label_lists, st.floats(0, 0.95), st.integers(0, 2**32))
def test_a_split_is_stratified_whole_and_seeded(
    labels: list[int], fraction: float, seed: int
) -> None:
    values = np.array(labels, np.int64)
    train, validation = split_validation(values, fraction, seed)
    assert sorted([*train, *validation]) == np.flatnonzero(values >= 0).tolist()
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    for label in set(labels) - {-1}:
        total, held = (values == label).sum(), (values[validation] == label).sum()
        assert held <= total - 1
        assert abs(held - total * fraction) < 1 or held == total - 1
    again = split_validation(values, fraction, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])


def test_other_seeds_give_other_splits() -> None:
    labels = np.repeat([0, 1, 2], 50)
    first, second = (split_validation(labels, 0.2, seed)[1] for seed in (0, 1))
    assert len(first) == len(second) == 30
    assert not np.array_equal(first, second)


def test_many_small_classes_still_give_the_asked_for_share() -> None:
    train, validation = split_validation(np.repeat(np.arange(100), 3), 0.1, 0)
    assert (len(train), len(validation)) == (270, 30)


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 1], 1.0, "fraction"),
        ([0, 1], -0.1, "fraction"),
        ([0.5], 0.1, "whole"),
        ([[1]], 0, "n,"),
    ],
)
def test_senseless_splits_are_refused(labels: list[int], fraction: float, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        split_validation(labels, fraction, 0)


def source_of(labels: list[int], matrix: list[list[int]] | None = None) -> Source:
    names = ("ant", "bee", "cow")
    return Source(
        "zoo",
        names,
        np.array(labels, np.int64),
        FileImages(tuple(f"/{i}.png" for i in range(len(labels)))),
        np.arange(len(labels)),
        None if matrix is None else np.array(matrix, bool),
    )


def test_training_needs_two_classes_of_two_images() -> None:
    require_labels(source_of([0, 0, 2, 2, -1]))
    with pytest.raises(SourceError, match="zoo: this needs labels, and none of the 2 images"):
        require_labels(source_of([-1, -1]))
    with pytest.raises(SourceError, match=r"at least 2 classes, got 1 \('bee'\)"):
        require_labels(source_of([1, 1, -1]))
    with pytest.raises(
        SourceError, match=r"at least 2 images, too few in: 'bee' \(1\), 'cow' \(1\)"
    ):
        require_labels(source_of([0, 0, 1, 2]))
    with pytest.raises(SourceError, match="at least 3 images"):
        require_labels(source_of([0, 0, 1, 1]), images=3)


def test_each_label_of_an_image_counts() -> None:
    source = source_of([0, 0, 1], [[1, 1, 0], [1, 0, 0], [0, 1, 0]])
    assert class_counts(source).tolist() == [2, 2, 0]
    require_labels(source)
    with pytest.raises(SourceError, match="'bee'"):
        require_labels(source.subset([0, 1]))


def test_imbalance_by_hand() -> None:
    measured = imbalance(source_of([0] * 6 + [1] * 3 + [2] * 3 + [-1] * 5))
    assert (measured.smallest, measured.largest, measured.ratio) == ("bee", "ant", 2.0)
    assert measured.effective_classes == pytest.approx(2 * np.sqrt(2))  # shares 1/2, 1/4, 1/4
    assert imbalance(source_of([0, 2])).effective_classes == pytest.approx(2)
    with pytest.raises(SourceError, match="no image has a label"):
        imbalance(source_of([-1]))


@given(label_lists)
def test_balanced_weights_give_each_class_the_same_share(labels: list[int]) -> None:
    values = np.array(labels, np.int64)
    weights = balanced_weights(values)
    present = set(labels) - {-1}
    assert (weights[values < 0] == 0).all()
    for label in present:
        assert weights[values == label].sum() == pytest.approx(1 / len(present))


def test_balanced_weights_of_many_labels_follow_the_rarest() -> None:
    matrix = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
    assert balanced_weights(matrix) == pytest.approx(np.array([1, 1 / 3, 1 / 3, 0]) * 3 / 5)
    with pytest.raises(InvalidInputError, match="labels"):
        balanced_weights([0.5])
