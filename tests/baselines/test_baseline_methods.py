"""Each method against an independent oracle, or against what its paper proves."""

from __future__ import annotations

import itertools
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.datasets import load_digits

from hamming_reference import topk
from hashlens import pack_bits, unpack_bits
from hashlens.baselines.base import random_rotation
from hashlens.baselines.bre import BRE, best_step, reconstruction_loss
from hashlens.baselines.itq import ITERATIONS, ITQ, rotate_to_corners
from hashlens.baselines.itq_cca import ITQCCA, _canonical_directions
from hashlens.baselines.ksh import KSH, _Residual
from hashlens.baselines.lsh import LSH
from hashlens.baselines.mlh import MLH, loss_augmented_codes, pair_loss
from hashlens.baselines.sh import SpectralHashing
from hashlens.types import Codes


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    data = load_digits()
    return data.data.astype(np.float32), data.target.astype(np.int64)


def mean_average_precision(codes: Codes, labels: NDArray[Any], cut: int = 100) -> float:
    """Of every image as a query over all others."""
    _, ids = topk(codes, codes, cut + 1)
    relevant = labels[ids[:, 1:]] == labels[:, None]
    precision = relevant.cumsum(axis=1) / np.arange(1, cut + 1)
    found = np.maximum(relevant.sum(axis=1), 1)
    return float(((precision * relevant).sum(axis=1) / found).mean())


def over_seeds(scores: list[float]) -> tuple[float, float]:
    return float(np.mean(scores)), float(np.std(scores) / np.sqrt(len(scores)))


def test_itq_does_at_least_as_well_as_faiss(digits: Any) -> None:
    """On the same input, which FAISS centres and scales to length 1.

    FAISS's steps do not lower ||B - V R|| at each turn, so it is a floor here; the exact
    alternation is compared with SciPy's Procrustes solution below.
    """
    features, labels = digits
    features = features - features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ours, theirs = [], []
    for seed in range(4):
        method = ITQ(24, seed=seed).fit(features)
        ours.append(mean_average_precision(method.encode(features), labels))
        transform = faiss.ITQTransform(features.shape[1], 24, True)
        transform.itq.seed = seed
        transform.train(features)
        values = transform.apply(features)
        theirs.append(mean_average_precision(pack_bits(values >= 0), labels))
        loss = np.square(np.where(values >= 0, 1, -1) - values).sum() / len(features)
        assert method.losses[-1] <= loss
    (mean, error), (other, other_error) = over_seeds(ours), over_seeds(theirs)
    assert mean > other - 3 * np.hypot(error, other_error)


def test_itq_alternates_exact_steps(digits: Any) -> None:
    features, _ = digits
    values = (features - features.mean(axis=0))[:, 20:28]
    found, _ = rotate_to_corners(values, seed=3)
    rotation = random_rotation(8, np.random.default_rng(3))
    for _ in range(ITERATIONS):
        rotation, _ = orthogonal_procrustes(values, np.where(values @ rotation >= 0, 1.0, -1.0))
    np.testing.assert_allclose(found, rotation, atol=1e-3)


def test_lsh_scores_as_faiss_does(digits: Any) -> None:
    features, labels = digits
    centred = features - features.mean(axis=0)
    ours, theirs = [], []
    for seed in range(12):
        ours.append(
            mean_average_precision(LSH(32, seed=seed).fit(features).encode(features), labels)
        )
        index = faiss.IndexLSH(features.shape[1], 32, True, False)
        index.rrot.init(seed + 1)
        codes = index.sa_encode(centred)
        theirs.append(mean_average_precision(codes, labels))
    (mean, error), (other, other_error) = over_seeds(ours), over_seeds(theirs)
    # FAISS's hyperplanes are orthogonal, which gains a little over independent ones.
    assert abs(mean - other) < 4 * np.hypot(error, other_error) + 0.02


def test_lsh_differs_in_a_share_of_bits_that_is_the_angle() -> None:
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, 30)).astype(np.float32)
    both = np.concatenate([pair, -pair, np.zeros((1020, 30), np.float32)])  # of mean 0
    codes = LSH(1024).fit(both).encode(both)
    cosine = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    differing = (unpack_bits(codes[:1]) != unpack_bits(codes[1:2])).mean()
    assert differing == pytest.approx(np.arccos(cosine) / np.pi, abs=0.06)


def test_itq_is_an_affine_map_whose_loss_never_rises(digits: Any) -> None:
    features, _ = digits
    method = ITQ(16).fit(features)
    assert method.weights.shape == (64, 16)
    assert method.bias.shape == (16,)
    assert all(a >= b - 1e-3 for a, b in itertools.pairwise(method.losses))
    np.testing.assert_allclose(method.weights.T @ method.weights, np.eye(16), atol=1e-4)
    projected = features @ method.weights + method.bias
    np.testing.assert_array_equal(method.encode(features), pack_bits(projected >= 0))
    corners = np.where(projected >= 0, 1, -1)
    loss = np.square(corners - projected).sum() / len(features)
    assert loss <= method.losses[-1] * (1 + 1e-4)


def test_spectral_hashing_cuts_a_uniform_rectangle_in_the_papers_order() -> None:
    """On [0, 4] x [0, 1] the smoothest functions are the first waves along the long side."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (4000, 2)).astype(np.float32) * np.array([4, 1], np.float32)
    bits = unpack_bits(SpectralHashing(8).fit(points).encode(points), 8)
    # Frequencies 1/4 ... 4/4 (with 1/1 among them) ... : bit j < 3 is cos(pi (j + 1) x / 4).
    for j in range(3):
        expected = np.cos(np.pi * (j + 1) * points[:, 0] / 4) >= 0
        agreement = (bits[:, j] == expected).mean()
        assert max(agreement, 1 - agreement) > 0.97


def test_canonical_directions_agree_with_scikit_learn(digits: Any) -> None:
    features, labels = digits
    features = features[:, features.std(axis=0) > 1]
    centred = features - features.mean(axis=0)
    ours = centred @ _canonical_directions(centred, np.eye(10, dtype=np.float32)[labels])
    assert ours.shape[1] == 9
    theirs = CCA(3, max_iter=5000).fit(features, np.eye(10)[labels]).transform(features)
    for j in range(3):
        assert abs(np.corrcoef(ours[:, j], theirs[:, j])[0, 1]) > 0.98


def test_itq_cca_separates_what_itq_cannot(digits: Any) -> None:
    features, labels = digits
    train, test = slice(0, 1200), slice(1200, None)
    scores = [
        mean_average_precision(
            method.fit(features[train], labels[train]).encode(features[test]), labels[test], 50
        )
        for method in (ITQCCA(32), ITQ(32))
    ]
    assert scores[0] > scores[1] + 0.02


def test_ksh_refinement_never_loses_and_beats_itq(digits: Any) -> None:
    features, labels = digits
    train, test = slice(0, 1200), slice(1200, None)
    method = KSH(24, anchors=200).fit(features[train], labels[train])
    assert len(method.gains) == 24
    assert all(kept >= spectral for spectral, kept in method.gains)
    # A bit lowers ||r S - H H'||^2 by 2 y'Ry - n^2: the first ones must.
    assert all(2 * kept > 1200**2 for _, kept in method.gains[:3])
    ours = mean_average_precision(method.encode(features[test]), labels[test], 50)
    itq = ITQ(24).fit(features[train]).encode(features[test])
    assert ours > mean_average_precision(itq, labels[test], 50) + 0.1


def test_ksh_residual_equals_the_matrix_it_stands_for() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=40)
    indicators = np.eye(3, dtype=np.float32)[classes]
    values = rng.standard_normal((40, 7)).astype(np.float32)
    residual = _Residual(indicators, 12)
    matrix = 12.0 * np.where(classes[:, None] == classes, 1, -1)
    np.testing.assert_allclose(residual.between(values), values.T @ matrix @ values, rtol=1e-4)
    for _ in range(3):
        sign = np.where(rng.random(40) < 0.5, 1, -1).astype(np.float32)
        residual.subtract(sign)
        matrix -= np.outer(sign, sign)
    vector = rng.standard_normal(40).astype(np.float32)
    np.testing.assert_allclose(residual @ vector, matrix @ vector, rtol=1e-3, atol=1e-3)


def test_bre_loss_never_rises_and_is_that_of_all_pairs(digits: Any) -> None:
    features, labels = digits
    method = BRE(16, anchors=15, sweeps=3).fit(features, labels)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(method.losses))
    assert method.losses[-1] < 0.95 * method.losses[0]
    bits = unpack_bits(method.encode(features), 16).astype(np.int64)
    hamming = (bits[:, None] != bits[None]).mean(axis=2)
    loss = np.square((labels[:, None] != labels) - hamming).mean()
    assert loss == pytest.approx(method.losses[-1], rel=1e-3)
    signs = (2 * bits - 1).astype(np.float32)
    indicators = np.eye(10, dtype=np.float32)[labels]
    assert reconstruction_loss(signs, indicators) == pytest.approx(loss, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 24), seed=st.integers(0, 10_000))
def test_bre_step_is_the_best_of_all(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    projected, direction = rng.standard_normal((2, n)).astype(np.float32)
    factors = rng.integers(-1, 2, (n, 4)).astype(np.float32)
    coefficients = rng.standard_normal(4).astype(np.float32)
    costs = (factors * coefficients) @ factors.T

    def cost(step: float) -> float:
        signs = projected + np.float32(step) * direction >= 0
        return float(costs[signs][:, ~signs].sum())

    turns = np.sort(-projected / direction)
    tries = np.concatenate([[turns[0] - 1], (turns[1:] + turns[:-1]) / 2, [turns[-1] + 1], [0.0]])
    found = best_step(projected, direction, factors, coefficients)
    assert cost(found) <= min(cost(step) for step in tries) + 1e-3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 6),
    similar=st.booleans(),
    radius=st.integers(1, 4),
    balance=st.floats(0.1, 2.0),
)
def test_mlh_finds_the_loss_augmented_codes(
    seed: int, bits: int, similar: bool, radius: int, balance: float
) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, 1, bits)).astype(np.float32)
    flag = np.array([similar])

    def value(g: Any, h: Any) -> float:
        distance = np.array([int((np.asarray(g) != np.asarray(h)).sum())])
        loss = pair_loss(distance, flag, radius, balance)[0]
        return float(loss + np.dot(g, left[0]) + np.dot(h, right[0]))

    codes = list(itertools.product([0, 1], repeat=bits))
    best = max(value(g, h) for g in codes for h in codes)
    g, h = loss_augmented_codes(left, right, flag, radius, balance)
    assert value(g[0], h[0]) == pytest.approx(best, abs=1e-4)


def test_mlh_lowers_its_loss(digits: Any) -> None:
    features, labels = digits
    losses = MLH(24, steps=1000).fit(features, labels).losses
    assert losses[-1] < 0.5 * losses[0]
