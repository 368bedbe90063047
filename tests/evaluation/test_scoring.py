"""The runner against plain loops, with a searcher that sorts everything."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import hamming_reference as reference
from hashlens import HashIndex, InvalidInputError, SearchResult, pack_bits
from hashlens.codes.packing import unpack_bits
from hashlens.evaluation.metrics import (
    NDCG_AT,
    PRECISION_AT,
    counts_by_distance,
    expected_average_precision,
    shares_label,
)
from hashlens.evaluation.scoring import score_searcher, top_class_error
from hashlens.index.ranking import ArraySearcher
from hashlens.types import MODES, EncodedImages, SearchOptions

BITS = 12


class SortingSearcher:
    """Sorts all distances; ``hds`` and ``acs`` sort only the nearest codes, their pool."""

    def __init__(self, database):
        self.database = database

    def __len__(self):
        return len(self.database)

    def search_encoded(self, codes, features, options, latent=None):
        k = options.k
        ids = np.full((len(codes), min(k, len(self))), -1)
        for row in range(len(codes)):
            one = None if options.exclude is None else options.exclude[row]
            values = None if latent is None else latent[row]
            found = self.order(codes[row], features[row], values, options, one)[:k]
            ids[row, : len(found)] = found
        return SearchResult(ids, np.zeros(ids.shape))

    def order(self, code, feature, latent, options, exclude=None):
        """Ids of all results of one query."""
        hamming = reference.distances(self.database.codes, code[None])[0]
        order = np.argsort(hamming, kind="stable")
        order = order[order != exclude]
        if options.radius is not None:
            order = order[hamming[order] <= options.radius]
        if options.mode == "bcs":
            return order
        pool = np.sort(order)
        if options.mode != "es" and options.radius is None:
            pool = np.sort(order[: options.pool_size])
        if options.mode == "acs":
            differs = unpack_bits(self.database.codes[pool] ^ code, BITS)
            distances = (differs * np.abs(latent)).sum(axis=1).astype(np.float32)
        else:
            distances = np.linalg.norm(self.database.features[pool] - feature, axis=1)
        return pool[np.argsort(distances, kind="stable")]


def _encoded(count, seed, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(0).normal(size=(classes, 5))
    features = (centres[labels] + rng.normal(size=(count, 5))).astype(np.float32)
    planes = np.random.default_rng(1).normal(size=(5, BITS))
    # Multiples of 1/8: sums of them are exact in whatever order.
    latent = np.round(8 * features @ planes).astype(np.float32) / 8
    return EncodedImages(pack_bits(latent >= 0), features, labels, latent=latent)


@pytest.fixture(scope="module")
def database():
    return _encoded(1300, 2)


@pytest.fixture(scope="module")
def queries():
    return _encoded(30, 3)


@pytest.fixture(scope="module")
def scores(database, queries):
    return score_searcher(SortingSearcher(database), database, queries, bits=BITS)


def plain_average(right):
    ranks = [rank for rank, one in enumerate(right, 1) if one]
    return sum(n / rank for n, rank in enumerate(ranks, 1)) / max(1, len(ranks))


def plain_rankings(database, queries, options, exclude=None):
    """For each query, which results are right; then which of all images, the others behind."""
    searcher = SortingSearcher(database)
    for row in range(len(queries)):
        one = None if exclude is None else exclude[row]
        order = searcher.order(
            queries.codes[row], queries.features[row], queries.latent[row], options, one
        )
        hamming = reference.distances(database.codes, queries.codes[row : row + 1])[0]
        before = {*order.tolist(), one}
        behind = [i for i in np.argsort(hamming, kind="stable").tolist() if i not in before]
        right = shares_label(queries.labels[row : row + 1], database.labels)[0]
        yield right[order].tolist(), right[[*order, *behind]].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_plain_loops(scores, database, queries, mode):
    found = scores.to_dict()[mode]
    for k in PRECISION_AT:
        wanted = [
            sum(right[:k]) / k
            for right, _ in plain_rankings(database, queries, SearchOptions(k, mode=mode))
        ]
        assert found[f"precision@{k}"] == pytest.approx(np.mean(wanted))
    options = SearchOptions(1000, mode=mode)
    wanted = [
        plain_average(right[:1000]) for right, _ in plain_rankings(database, queries, options)
    ]
    assert found["map@1000"] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize(("radius", "pool"), [(None, None), (None, 1100), (None, 70), (3, None)])
@pytest.mark.parametrize("mode", MODES)
def test_ranking_of_the_whole_database_equals_plain_loops(database, queries, mode, radius, pool):
    """mAP of all and up to k, and the precision-recall curve; images after the pool by code."""
    exclude = np.where(np.arange(30) % 2, np.arange(30), -1)
    limit = {} if mode == "es" else {"radius": radius}
    found = score_searcher(
        SortingSearcher(database), database, queries, bits=BITS, modes=[mode], map_at=[7, 1200],
        exclude=exclude, pool=pool, **limit,
    ).to_dict()[mode]  # fmt: skip
    options = SearchOptions(1000, mode=mode, pool=pool, **limit)
    whole = [right for _, right in plain_rankings(database, queries, options, exclude)]
    for name, k in (("map@all", 1300), ("map@7", 7), ("map@1200", 1200)):
        assert found[name] == pytest.approx(np.mean([plain_average(right[:k]) for right in whole]))
    for level in (0.05, 0.5, 1.0):
        precision = []
        for right in whole:
            wanted = next(n for n in range(1, 1300) if n >= level * sum(right) - 1e-9)
            rank = [rank for rank, one in enumerate(right, 1) if one][wanted - 1]
            precision.append(sum(right[:rank]) / rank)
        assert found["precision_at_recall"][f"{level:.2f}"] == pytest.approx(np.mean(precision))


@pytest.mark.parametrize("mode", ["hds", "acs"])
def test_precision_is_that_of_a_search_for_k(tmp_path, mode):
    """What ``ArraySearcher`` and ``HashIndex`` return for k, of the pool that they choose."""
    database, queries = _encoded(3000, 2, classes=20), _encoded(40, 3, classes=20)
    index = HashIndex.create(tmp_path / "index", bits=BITS, feature_dim=5, features="float32")
    index.add_encoded(database.codes, database.features, [str(i) for i in range(3000)])
    for searcher in (ArraySearcher(database.codes, database.features), index):
        scored = score_searcher(searcher, database, queries, bits=BITS, modes=[mode])
        for k in PRECISION_AT:
            options = SearchOptions(k, mode=mode)
            ids = searcher.search_encoded(
                queries.codes, queries.features, options, queries.latent
            ).ids
            right = database.labels[ids] == queries.labels[:, None]
            assert scored.modes[mode].precision[k] == pytest.approx(right.mean())
            if k == 10:
                np.testing.assert_array_equal(scored.modes[mode].nearest, ids)


def test_graded_relevance_of_several_labels_equals_scikit_learn(database, queries):
    rng = np.random.default_rng(5)
    many = dataclasses.replace(database, labels=rng.random((1300, 6)) < 0.4)
    asked = dataclasses.replace(queries, labels=rng.random((30, 6)) < 0.4)
    searcher = SortingSearcher(many)
    scored = score_searcher(searcher, many, asked, bits=BITS).to_dict()
    shared = asked.labels.astype(int) @ many.labels.T.astype(int)
    for mode in MODES:
        for k in NDCG_AT:
            wanted = []
            for row in range(30):
                order = searcher.order(
                    asked.codes[row], asked.features[row], asked.latent[row],
                    SearchOptions(k, mode=mode),
                )  # fmt: skip
                place = np.full(1300, -1300.0)
                place[order] = -np.arange(len(order))
                place[np.setdiff1d(np.arange(1300), order)] -= np.arange(1300 - len(order))
                gains = 2.0 ** shared[row] - 1
                wanted.append(ndcg_score([gains], [place], k=k) if gains.any() else 0.0)
            assert scored[mode][f"ndcg@{k}"] == pytest.approx(np.mean(wanted))


def test_without_latent_values_acs_is_left_out(database, queries):
    bare = dataclasses.replace(queries, latent=None)
    searcher = ArraySearcher(database.codes, database.features)
    assert "acs" not in score_searcher(searcher, database, bare, bits=BITS).modes
    with pytest.raises(InvalidInputError, match="needs the queries' latent values"):
        score_searcher(searcher, database, bare, bits=BITS, modes=["acs"])


def test_keys_are_those_that_programs_read(scores):
    found = scores.to_dict()
    assert set(found) == {
        "bits", "n_database", "n_queries", "classification_error", "bcs", "acs", "hds", "es"
    }  # fmt: skip
    assert (found["bits"], found["n_database"], found["n_queries"]) == (BITS, 1300, 30)
    wanted = {"map@1000", "map@all", "map@1000_ties", "precision_at_recall", "ms_per_query"}
    wanted |= {f"precision@{k}" for k in (1, 5, 10, 20, 50, 100, 200, 400, 600, 800, 1000)}
    assert set(found["acs"]) == set(found["hds"]) == set(found["es"]) == wanted
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
    for mode in MODES:
        for key in ("map@1000", "map@1000_ties", "precision@10"):
            assert found[mode][key] == pytest.approx(scores.to_dict()[mode][key])


def test_codes_that_a_searcher_misses_lower_its_recall(database, queries):
    class Careless(SortingSearcher):
        def search_encoded(self, codes, features, options, latent=None):
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
    for mode in MODES:
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
    with pytest.raises(InvalidInputError, match="precision_at: expected from 1 to 1000, got 1001"):
        score_searcher(searcher, database, queries, bits=BITS, precision_at=[1, 1001])
    with pytest.raises(InvalidInputError, match="map_at: expected 1 or more, got 0"):
        score_searcher(searcher, database, queries, bits=BITS, map_at=[0])


def test_features_are_needed_by_hds_and_es(database, queries):
    class CodesOnly(SortingSearcher):
        def search_encoded(self, codes, features, options, latent=None):
            return super().search_encoded(codes, np.zeros((len(codes), 5)), options, latent)

    bare = dataclasses.replace(queries, features=queries.features[:, :0])
    searcher = CodesOnly(database)
    for mode in ("bcs", "acs"):
        assert score_searcher(searcher, database, bare, bits=BITS, modes=[mode]).modes[mode]
    with pytest.raises(InvalidInputError, match="hds needs features"):
        score_searcher(searcher, database, bare, bits=BITS)
