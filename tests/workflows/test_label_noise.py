"""Doubtful labels: each part against a plain rewrite, then found in synthetic noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from hashlens import InvalidInputError
from hashlens.workflows.labels import confused_pairs, leave_one_out_scores, suspicion


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 30)])
def test_leaving_one_out_is_fitting_without_it(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    features = rng.normal(3, 2, (n, d)).astype(np.float32)
    labels = np.arange(n) % 3
    features[:, 0] += labels
    centred = features - features.mean(axis=0)
    scale = np.linalg.eigvalsh((centred.T @ centred).astype(np.float64)).mean()
    losses, answers = [], []
    for penalty in 10.0 ** np.arange(-4, 3):
        held_out = np.empty((n, 3))
        for i in range(n):
            rest = np.arange(n) != i
            fit = Ridge(alpha=penalty * scale).fit(features[rest], np.eye(3)[labels[rest]])
            held_out[i] = fit.predict(features[i : i + 1])[0]
        losses.append(np.square(np.eye(3)[labels] - held_out).sum())
        answers.append(held_out)
    expected = answers[int(np.argmin(losses))]
    np.testing.assert_allclose(leave_one_out_scores(features, labels, 3), expected, atol=1e-4)


def test_features_that_say_nothing_give_about_the_shares_of_the_classes() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    scores = leave_one_out_scores(np.ones((40, 5), np.float32), labels, 3)
    assert np.allclose(scores[:, 0], 0.75, atol=0.03)
    assert np.allclose(scores[:, 2], 0, atol=1e-9)


def test_suspicion_by_hand() -> None:
    # Class 0's own images reach 0.5 on average, class 1's 0.75, class 2 has none.
    scores = np.array([[0.9, 0.0, 0.3], [0.1, 0.8, 0.9], [0.2, 0.9, 0.0], [0.1, 0.6, 0.0]])
    found = suspicion(scores, [0, 0, 1, 1])
    np.testing.assert_allclose(
        found.scores, [-0.75 - 0.4, 0.05 + 0.4, -0.3 - 0.15, -0.4 + 0.15], atol=1e-12
    )
    assert found.looks_like.tolist() == [1, 1, 0, 0]
    assert found.order.tolist() == [1, 3, 2, 0]
    assert found.likely_wrong.tolist() == [False, True, False, False]
    [pair] = confused_pairs(found, [0, 0, 1, 1])
    assert pair == (0, 1, 1, 0.5)


def test_a_class_that_fits_better_but_badly_does_not_make_a_label_likely_wrong() -> None:
    found = suspicion(np.array([[0.9, 0.1], [0.0, 0.7], [0.1, 0.9]]), [0, 0, 1])
    assert found.scores[1] == pytest.approx((0.7 - 0.9) - (0.0 - 0.45))
    assert not found.likely_wrong.any()
    assert confused_pairs(found, [0, 0, 1]) == []


def test_few_right_labels_of_few_images_that_are_hard_to_tell_are_called_wrong() -> None:
    """12 images of each of 10 classes that overlap, as of photographs and weak features."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    features = rng.normal(0, 1, (10, 64))[labels] + rng.normal(0, 3.0, (120, 64))
    found = suspicion(leave_one_out_scores(features.astype(np.float32), labels, 10), labels)
    assert (found.scores > 0).mean() > 0.4  # another class fits better
    assert found.likely_wrong.mean() < 0.15


def test_ties_are_ordered_by_position() -> None:
    assert suspicion(np.full((4, 2), 0.5), [0, 1, 0, 1]).order.tolist() == [0, 1, 2, 3]


def noisy(seed: int, sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Clouds of features, and labels of which a fifth were shuffled."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(0, 1, (len(sizes), 16))
    features = (centres[true] + rng.normal(0, 0.8, (len(true), 16))).astype(np.float32)
    rows = rng.permutation(len(true))[: len(true) // 5]
    labels = true.copy()
    labels[rows] = rng.permutation(true[rows])
    return features, labels, labels != true


def test_shuffled_labels_are_found() -> None:
    features, labels, wrong = noisy(0, (200,) * 5)
    found = suspicion(leave_one_out_scores(features, labels, 5), labels)
    first = found.order[: wrong.sum()]
    assert wrong[first].mean() > 0.9  # chance: 0.16
    pairs = confused_pairs(found, labels)
    assert [pair.images for pair in pairs] == sorted((p.images for p in pairs), reverse=True)


def test_a_rare_class_is_not_suspect_as_such() -> None:
    features, labels, wrong = noisy(1, (600, 300, 40))
    found = suspicion(leave_one_out_scores(features, labels, 3), labels)
    right_and_rare = (labels == 2) & ~wrong
    assert (found.scores[right_and_rare] > 0).mean() < 0.15


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "features: expected"),
        (np.zeros((1, 2)), [0], "at least 2 labels"),
        (np.full((2, 2), np.nan), [0, 1], "finite"),
        (np.zeros((2, 2)), [0, -1], "leave unlabelled images out"),
        (np.zeros((2, 2)), [0, 2], "expected 0 to 1"),
        (np.zeros((0, 2)), [], "at least one"),
    ],
)
def test_senseless_input_is_refused(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        leave_one_out_scores(features, labels, 2)
    with pytest.raises(InvalidInputError):
        suspicion(np.zeros((3, 1)), [0, 0, 0])
