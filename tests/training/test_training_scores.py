"""Validation scores against plain rewrites, and the two detectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hashlens.training.fit import chance_loss, chance_warning, stuck_warning
from hashlens.training.module import code_map, validation_scores


def _expected_map(bits: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over every order of the tied images: only for a handful of images."""
    scores = []
    for query in range(len(bits)):
        others = [i for i in range(len(bits)) if i != query]
        distance = {i: int((bits[i] != bits[query]).sum()) for i in others}
        values = []
        for order in itertools.permutations(others):
            if [distance[i] for i in order] != sorted(distance.values()):
                continue
            found, precision = 0, []
            for rank, i in enumerate(order, 1):
                if relevant[query, i]:
                    found += 1
                    precision.append(found / rank)
            values.append(np.mean(precision) if precision else 0.0)
        scores.append(np.mean(values))
    return float(np.mean(scores))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("several", [False, True])
def test_code_map_against_all_orders(seed: int, several: bool) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((6, 3)) < 0.5
    if several:
        matrix = rng.random((6, 3)) < 0.5
        targets, relevant = torch.from_numpy(matrix), (matrix @ matrix.T) > 0
    else:
        labels = rng.integers(0, 3, 6)
        targets, relevant = torch.from_numpy(labels), labels[:, None] == labels
    got = code_map(torch.from_numpy(bits), targets)
    assert got == pytest.approx(_expected_map(bits, relevant))


def test_perfect_codes_score_one() -> None:
    labels = torch.arange(40) % 4
    bits = torch.stack([labels >= 2, labels % 2 == 1], dim=1)
    assert code_map(bits, labels) == pytest.approx(1.0)
    assert code_map(bits[:1], labels[:1]) == 0.0


def test_validation_scores() -> None:
    latent = torch.tensor([[1.0, -1.0, 0.0], [2.0, -3.0, -1.0]])
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    got = validation_scores(latent, scores, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert (got.accuracy, got.loss, got.stuck_bits, got.images) == (0.5, 1.5, 2, 2)
    several = torch.tensor([[True, True], [False, True]])
    assert validation_scores(latent, scores, several, torch.ones(2)).accuracy == 0.5


def test_chance_is_the_entropy_of_the_labels() -> None:
    assert chance_loss(np.arange(100) % 10) == pytest.approx(math.log(10))
    uneven = np.array([0] * 90 + [1] * 10)
    assert chance_loss(uneven) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert chance_loss(uneven, balanced=True) == pytest.approx(math.log(2))
    assert chance_loss(np.array([[True, False], [False, False]])) == pytest.approx(
        math.log(2) / 2, abs=1e-6
    )


def test_chance_warning() -> None:
    assert chance_warning(4.60, 4.605, 1, 30) is None  # too early to say
    warning = chance_warning(4.60, 4.605, 3, 30)
    assert warning is not None
    assert "still at chance (4.605)" in warning
    assert "--learning-rate" in warning
    assert chance_warning(4.0, 4.605, 3, 30) is None
    for diverged in (math.nan, math.inf, 300.0):
        assert "rate is too high" in str(chance_warning(diverged, 4.605, 3, 30))


def test_stuck_warning() -> None:
    assert stuck_warning(0, 48) is None
    assert "5 of 48 bits" in str(stuck_warning(5, 48))
