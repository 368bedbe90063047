"""Metrics against values worked by hand, plain loops, scikit-learn and simulation."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, precision_recall_curve

from hashlens import InvalidInputError
from hashlens.evaluation.metrics import (
    average_precision,
    expected_average_precision,
    ndcg_at_k,
    precision_at_k,
    precision_at_recall,
    precision_within_radius,
)


def _plain_average_precision(ranked, cutoff):
    """A loop over the definition, in exact fractions."""
    found, total = 0, Fraction(0)
    for rank, relevant in enumerate(ranked[:cutoff], start=1):
        if relevant:
            found += 1
            total += Fraction(found, rank)
    return total / found if found else Fraction(0)


def _mean_over_orders(groups, score):
    """Mean of a score over every order of tied images; groups are (size, relevant) pairs."""
    orders = []
    for size, good in groups:
        places = itertools.combinations(range(size), good)
        orders.append([[i in chosen for i in range(size)] for chosen in places])
    results = [score(list(itertools.chain(*order))) for order in itertools.product(*orders)]
    return float(sum(results) / len(results))


def test_precision_by_hand():
    ranked = [[True, True, False, True], [False, False, False, True]]
    found = precision_at_k(ranked, [1, 2, 3, 4])
    assert found.tolist() == [[1, 1, pytest.approx(2 / 3), 0.75], [0, 0, 0, 0.25]]


def test_precision_past_the_results_divides_by_k():
    assert precision_at_k([[True, True]], [2, 4, 1000]).tolist() == [[1.0, 0.5, 0.002]]
    assert precision_at_k(np.zeros((1, 0), bool), [1]).tolist() == [[0.0]]


def test_average_precision_by_hand():
    # Relevant at ranks 1, 3, 4: (1/1 + 2/3 + 3/4) / 3 = 29/36.
    assert average_precision([[True, False, True, True]])[0] == pytest.approx(29 / 36)


def test_average_precision_divides_by_the_relevant_found_before_the_cutoff():
    # Only rank 2 counts within 2: (1/2) / 1, although three are relevant in all.
    assert average_precision([[False, True, True, True]], cutoff=2)[0] == 0.5


def test_average_precision_is_zero_where_nothing_relevant_is_found():
    assert average_precision([[False, False, True]], cutoff=2).tolist() == [0.0]
    assert average_precision(np.zeros((2, 0), bool)).tolist() == [0.0, 0.0]


def test_average_precision_equals_scikit_learn_without_a_cutoff():
    rng = np.random.default_rng(3)
    ranked = rng.random((20, 50)) < 0.3
    ranked[:, -1] = True
    oracle = [average_precision_score(row, -np.arange(50)) for row in ranked]
    np.testing.assert_allclose(average_precision(ranked), oracle)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 35))
def test_average_precision_equals_a_plain_loop(ranked, cutoff):
    assert average_precision([ranked], cutoff)[0] == pytest.approx(
        float(_plain_average_precision(ranked, cutoff))
    )


def test_precision_at_recall_by_hand():
    found = precision_at_recall([[False, True, False, True], [False] * 4], [0.25, 0.5, 0.75, 1])
    assert found.tolist() == [[0.5] * 4, [0.0] * 4]
    with pytest.raises(InvalidInputError, match="above 0 and up to 1"):
        precision_at_recall([[True]], [0.0])


def test_precision_at_recall_equals_scikit_learn():
    ranked = np.random.default_rng(3).random((20, 60)) < 0.3
    levels = [0.1, 0.35, 0.8, 1.0]
    for row, found in zip(ranked, precision_at_recall(ranked, levels), strict=True):
        precision, recall, _ = precision_recall_curve(row, -np.arange(60))
        # Its last threshold is the first rank: the curve runs from high recall to low.
        wanted = [precision[np.flatnonzero(recall >= level - 1e-9)[-1]] for level in levels]
        np.testing.assert_allclose(found, wanted)


def test_ndcg_by_hand():
    # 2 labels, then none, then 1: (3 + 1 / 2) over (3 + 1 / log2(3)).
    found = ndcg_at_k([[2, 0, 1]], [[1, 0, 2]], [1, 3])
    np.testing.assert_allclose(found, [[1, 3.5 / (3 + 1 / np.log2(3))]])
    assert ndcg_at_k([[0, 0]], [[0, 0]], [2]).tolist() == [[0.0]]


def test_ndcg_equals_scikit_learn():
    shared = np.random.default_rng(4).integers(0, 4, (20, 50))
    found = ndcg_at_k(shared, shared[:, ::-1], [1, 10, 50, 80])
    for place, k in enumerate([1, 10, 50, 80]):
        wanted = [ndcg_score([2.0**row - 1], [-np.arange(50)], k=k) for row in shared]
        np.testing.assert_allclose(found[:, place], wanted)


def test_expected_average_precision_by_hand():
    # Two tied images, one relevant: first (AP 1) or second (AP 1/2), so 3/4.
    assert expected_average_precision([[2]], [[1]])[0] == pytest.approx(0.75)
    # Cut to one place: found (AP 1) or not found (AP 0), so 1/2.
    assert expected_average_precision([[2]], [[1]], cutoff=1)[0] == pytest.approx(0.5)


_groups = st.lists(
    st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(_groups, st.integers(1, 18))
def test_expected_average_precision_equals_the_mean_over_every_order(groups, cutoff):
    sizes, good = zip(*groups, strict=True)
    found = expected_average_precision([sizes], [good], cutoff)[0]
    oracle = _mean_over_orders(groups, lambda order: _plain_average_precision(order, cutoff))
    assert found == pytest.approx(oracle, abs=1e-12)


def test_expected_average_precision_by_simulation_with_a_cut_group():
    rng = np.random.default_rng(11)
    sizes, good = [40, 300, 900, 50], [30, 120, 200, 0]
    cutoff, trials = 1000, 4000
    samples = np.empty((trials, sum(sizes)), bool)
    start = 0
    for size, relevant in zip(sizes, good, strict=True):
        block = np.tile(np.arange(size) < relevant, (trials, 1))
        samples[:, start : start + size] = rng.permuted(block, axis=1)
        start += size
    scores = average_precision(samples, cutoff)
    error = scores.std() / np.sqrt(trials)
    found = expected_average_precision([sizes], [good], cutoff)[0]
    assert abs(found - scores.mean()) < 4 * error


@given(st.lists(st.booleans(), min_size=1, max_size=25), st.integers(1, 30))
def test_without_ties_the_expectation_is_the_score_itself(ranked, cutoff):
    ones = np.ones((1, len(ranked)), int)
    found = expected_average_precision(ones, [ranked], cutoff)
    np.testing.assert_allclose(found, average_precision([ranked], cutoff), atol=1e-12)


def test_expectations_of_many_queries_are_those_of_each():
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 700, (30, 12))
    good = rng.integers(0, sizes + 1)
    together = expected_average_precision(sizes, good)
    alone = [expected_average_precision([s], [g])[0] for s, g in zip(sizes, good, strict=True)]
    np.testing.assert_allclose(together, alone)


def test_a_million_tied_images_give_the_share_of_relevant_ones():
    found = expected_average_precision([[1_000_000]], [[100_000]])[0]
    # Each place is relevant with chance 0.1; early places are noisy upwards, so slightly above.
    assert 0.1 < found < 0.11


def test_precision_within_radius_by_hand():
    sizes, good = [[2, 0, 4], [0, 0, 1]], [[2, 0, 1], [0, 0, 1]]
    assert precision_within_radius(sizes, good, 0).tolist() == [1.0, 0.0]
    assert precision_within_radius(sizes, good, 2).tolist() == [0.5, 1.0]
    assert precision_within_radius(sizes, good, 99).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("sizes", "good"), [([[1]], [[2]]), ([[1]], [[-1]]), ([1], [1]), ([[1, 2]], [[1]])]
)
def test_counts_that_cannot_be_are_refused(sizes, good):
    with pytest.raises(InvalidInputError, match="counts: expected"):
        expected_average_precision(sizes, good)


def test_ranked_relevance_of_a_wrong_shape_is_refused():
    with pytest.raises(InvalidInputError, match="expected shape"):
        average_precision([True])
    with pytest.raises(InvalidInputError, match="expected 1 or more"):
        precision_at_k([[True]], [0])
