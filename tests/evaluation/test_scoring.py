"""The runner against plain loops, with a searcher that sorts everything."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import hamming_reference as reference
from hashlens import InvalidInputError, SearchResult, pack_bits
from hashlens.evaluation.metrics import (
    PRECISION_AT,
    counts_by_distance,
    expected_average_precision,
    shares_label,
)
from hashlens.evaluation.scoring import score_searcher, top_class_error
from hashlens.types import EncodedImages

BITS = 12


class SortingSearcher:
    """Sorts all distances; ``hds`` keeps the nearest quarter by code as its pool."""

    def __init__(self, database):
        self.database = database

    def __len__(self):
        return len(self.database)

    def search_encoded(self, codes, features, options):
        exclude, k = options.exclude, options.k
        ids = np.full((len(codes), min(k, len(self))), -1)
        for row in range(len(codes)):
            found = self._one(codes[row], features[row], options.mode, options.radius)
            found = [i for i in found if exclude is None or i != exclude[row]][:k]
            ids[row, : len(found)] = found
        return SearchResult(ids, np.zeros(ids.shape))

    def _one(self, code, feature, mode, radius):
        hamming = reference.distances(self.database.codes, code[None])[0]
        euclidean = np.linalg.norm(self.database.features - feature, axis=1)
        order = np.argsort(hamming, kind="stable")
        if radius is not None:
            order = order[hamming[order] <= radius]
        if mode == "bcs":
            return order
        pool = np.sort(order[: len(self) // 4]) if mode == "hds" else np.arange(len(self))
        return pool[np.argsort(euclidean[pool], kind="stable")]


def _encoded(count, seed, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(0).normal(size=(classes, 5))
    features = (centres[labels] + rng.normal(size=(count, 5))).astype(np.float32)
    planes = np.random.default_rng(1).normal(size=(5, BITS))
    return EncodedImages(pack_bits(features @ planes > 0), features, labels)


@pytest.fixture(scope="module")
def database():
    return _encoded(1300, 2)


@pytest.fixture(scope="module")
def queries():
    return _encoded(30, 3)


@pytest.fixture(scope="module")
def scores(database, queries):
    return score_searcher(SortingSearcher(database), database, queries, bits=BITS)


def _plain_scores(database, queries, mode):
    """Mean precision at each k, and mean average precision, by loops."""
    searcher = SortingSearcher(database)
    precisions, averages = [], []
    for code, feature, label in zip(queries.codes, queries.features, queries.labels, strict=True):
        order = searcher._one(code, feature, mode, None)[:1000]
        right = [bool(database.labels[i] == label) for i in order]
        precisions.append([sum(right[:k]) / k for k in PRECISION_AT])
        found = [sum(right[: i + 1]) / (i + 1) for i in range(len(right)) if right[i]]
        averages.append(sum(found) / len(found) if found else 0.0)
    return np.mean(precisions, axis=0), np.mean(averages)


@pytest.mark.parametrize("mode", ["bcs", "hds", "es"])
def test_scores_equal_plain_loops(scores, database, queries, mode):
    precision, average = _plain_scores(database, queries, mode)
    found = scores.to_dict()[mode]
    np.testing.assert_allclose([found[f"precision@{k}"] for k in PRECISION_AT], precision)
    assert found["map@1000"] == pytest.approx(average)


def test_keys_are_those_that_programs_read(scores):
    found = scores.to_dict()
    assert set(found) == {
        "bits", "n_database", "n_queries", "classification_error", "bcs", "hds", "es"
    }  # fmt: skip
    assert (found["bits"], found["n_database"], found["n_queries"]) == (BITS, 1300, 30)
    wanted = {"map@1000", "map@1000_ties", "ms_per_query"}
    wanted |= {f"precision@{k}" for k in (1, 5, 10, 100, 200, 400, 600, 800, 1000)}
    assert set(found["hds"]) == set(found["es"]) == wanted
    assert set(found["bcs"]) == wanted | {"recall@1000", "precision_within_radius_2"}
    assert found["bcs"]["recall@1000"] == 1.0
    assert all(found[mode]["ms_per_query"] > 0 for mode in ("bcs", "hds", "es"))


def test_ties_of_codes_count_the_whole_database(scores, database, queries):
    distances = reference.distances(database.codes, queries.codes)
    relevant = database.labels[None] == queries.labels[:, None]
    sizes = [[(row == d).sum() for d in range(BITS + 1)] for row in distances]
    good = [
        [(held & (row == d)).sum() for d in range(BITS + 1)]
        for row, held in zip(distances, relevant, strict=True)
    ]
    wanted = expected_average_precision(sizes, good).mean()
    assert scores.to_dict()["bcs"]["map@1000_ties"] == pytest.approx(wanted)
    within = [g[0] + g[1] + g[2] for g in good] / np.maximum([sum(s[:3]) for s in sizes], 1)
    found = scores.to_dict()["bcs"]["precision_within_radius_2"]
    assert found == pytest.approx(within.mean())


def test_without_tied_features_both_average_precisions_agree(scores):
    found = scores.to_dict()["es"]
    assert found["map@1000_ties"] == pytest.approx(found["map@1000"], abs=1e-9)


def test_features_all_equal_are_one_tie_past_the_cutoff(database, queries):
    flat = dataclasses.replace(database, features=np.ones_like(database.features))
    found = score_searcher(SortingSearcher(flat), flat, queries, bits=BITS, modes=["es"])
    good = [[(database.labels == label).sum()] for label in queries.labels]
    wanted = expected_average_precision([[1300]] * 30, good).mean()
    assert found.to_dict()["es"]["map@1000_ties"] == pytest.approx(wanted)


def test_a_tie_across_the_cutoff_is_counted_whole(queries):
    """990 distinct images, then 300 twins of which the first 11 are returned."""
    rng = np.random.default_rng(7)
    features = np.zeros((1290, 5), np.float32)
    features[:990, 0] = np.linspace(0, 1, 990)
    features[990:, 0] = 5
    labels = rng.integers(0, 3, 1290)
    database = EncodedImages(pack_bits(np.zeros((1290, BITS), bool)), features, labels)
    one = EncodedImages(queries.codes[:1], np.zeros((1, 5), np.float32), np.array([1]))
    found = score_searcher(SortingSearcher(database), database, one, bits=BITS, modes=["es"])
    sizes = [[1] * 990 + [300]]
    good = [[*(labels[:990] == 1), (labels[990:] == 1).sum()]]
    assert found.to_dict()["es"]["map@1000_ties"] == pytest.approx(
        expected_average_precision(sizes, good)[0]
    )


def test_order_and_distances_of_the_searcher_are_not_trusted(scores, database, queries):
    class Shuffling(SortingSearcher):
        def search_encoded(self, *query):
            ids = super().search_encoded(*query).ids
            return SearchResult(np.random.default_rng(4).permuted(ids, axis=1), ids * 0.0)

    # Of 1,001 results one is past the cutoff; shuffled, it is still sorted out.
    found = score_searcher(Shuffling(database), database, queries, bits=BITS).to_dict()
    for mode in ("bcs", "hds", "es"):
        for key in ("map@1000", "map@1000_ties", "precision@10"):
            assert found[mode][key] == pytest.approx(scores.to_dict()[mode][key])


def test_codes_that_a_searcher_misses_lower_its_recall(database, queries):
    class Careless(SortingSearcher):
        def search_encoded(self, codes, features, options):
            k, everything = options.k, dataclasses.replace(options, k=len(self))
            ids = super().search_encoded(codes, features, everything).ids
            return SearchResult(ids[:, ::-1][:, :k], ids * 0.0)

    found = score_searcher(Careless(database), database, queries, bits=BITS, modes=["bcs"])
    assert found.to_dict()["bcs"]["recall@1000"] < 0.9


def test_radius_limits_codes_and_not_features(scores, database, queries):
    found = score_searcher(
        SortingSearcher(database), database, queries, bits=BITS, radius=1
    ).to_dict()
    assert found["es"]["map@1000"] == scores.to_dict()["es"]["map@1000"]
    assert found["bcs"]["precision@1000"] < scores.to_dict()["bcs"]["precision@1000"]
    assert found["bcs"]["recall@1000"] == 1.0


def test_queries_of_the_database_are_left_out_of_their_own_results(database):
    rows = np.arange(0, 1300, 50)
    queries = database.rows(rows)
    found = score_searcher(SortingSearcher(database), database, queries, bits=BITS, exclude=rows)
    for scores in found.modes.values():
        assert not (scores.nearest == rows[:, None]).any()
    others = np.setdiff1d(np.arange(1300), rows[:1])
    alone = database.rows(others)
    wanted = score_searcher(SortingSearcher(alone), alone, queries.rows(slice(0, 1)), bits=BITS)
    one = score_searcher(
        SortingSearcher(database), database, queries.rows(slice(0, 1)), bits=BITS, exclude=rows[:1]
    )
    for mode in ("bcs", "es"):
        for key in ("map@1000", "map@1000_ties", "precision@10"):
            assert one.to_dict()[mode][key] == pytest.approx(wanted.to_dict()[mode][key])


def test_one_class_as_many_labels_scores_the_same(scores, database, queries):
    def many(encoded):
        return dataclasses.replace(encoded, labels=np.eye(3, dtype=bool)[encoded.labels])

    found = score_searcher(SortingSearcher(database), many(database), many(queries), bits=BITS)
    for mode in ("bcs", "hds", "es"):
        for key in ("map@1000", "map@1000_ties", "precision@10"):
            assert found.to_dict()[mode][key] == scores.to_dict()[mode][key]


def test_unlabelled_images_are_relevant_to_nothing():
    assert not shares_label(np.array([-1, 0]), np.array([-1, -1])).any()
    assert not shares_label(np.zeros((1, 2), bool), np.ones((1, 2), bool)).any()
    both = shares_label(np.array([[1, 1, 0]], bool), np.array([[0, 1, 0], [0, 0, 1]], bool))
    assert both.tolist() == [[True, False]]


def test_counts_by_distance_leave_out_one_row():
    codes = pack_bits(np.eye(10, dtype=bool))
    labels = np.arange(10) % 2
    sizes, good = counts_by_distance(
        codes, codes[:2], labels, labels[:2], bits=10, exclude=np.array([0, -1])
    )
    assert sizes[:, [0, 2]].tolist() == [[0, 9], [1, 9]]
    assert good[:, [0, 2]].tolist() == [[0, 4], [1, 4]]


def test_top_class_error_by_hand():
    scores = np.array([[1, 2, 0], [3, 1, 0], [0, 0, 1]], np.float32)
    assert top_class_error(scores, np.array([1, 2, -1])) == 0.5
    assert top_class_error(scores, np.array([-1, -1, -1])) is None
    many = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    assert top_class_error(scores, many) == 0.5


def test_input_that_does_not_fit_is_refused(database, queries):
    searcher = SortingSearcher(database)
    with pytest.raises(InvalidInputError, match="the searcher holds 1300 images, the database 9"):
        score_searcher(searcher, database.rows(slice(9)), queries, bits=BITS)
    with pytest.raises(InvalidInputError, match="at least one query"):
        score_searcher(searcher, database, queries.rows(slice(0)), bits=BITS)
    short = dataclasses.replace(queries, labels=queries.labels[:3])
    with pytest.raises(InvalidInputError, match="labels of the queries: expected 30 integers"):
        score_searcher(searcher, database, short, bits=BITS)
    many = dataclasses.replace(queries, labels=np.eye(3, dtype=bool)[queries.labels])
    with pytest.raises(InvalidInputError, match="one class per image in both"):
        score_searcher(searcher, database, many, bits=BITS)
    with pytest.raises(InvalidInputError, match="exclude: expected one row per query"):
        score_searcher(searcher, database, queries, bits=BITS, exclude=np.zeros(2, np.int64))


def test_features_are_needed_by_all_but_bcs(database, queries):
    class CodesOnly(SortingSearcher):
        def search_encoded(self, codes, features, options):
            return super().search_encoded(codes, np.zeros((len(codes), 5)), options)

    bare = dataclasses.replace(queries, features=queries.features[:, :0])
    searcher = CodesOnly(database)
    assert score_searcher(searcher, database, bare, bits=BITS, modes=["bcs"]).modes["bcs"]
    with pytest.raises(InvalidInputError, match="hds needs features"):
        score_searcher(searcher, database, bare, bits=BITS)
