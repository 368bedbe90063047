"""A sharded index answers as one index does, and goes on when parts of the cluster fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens import HashIndex, IndexStoreError, InvalidInputError, SearchOptions, unpack_bits
from hashlens.distributed.sharded import ShardedIndex

from .sharded_folders import BITS, DIM, make_shards, part

MODES = ("bcs", "acs", "hds", "es")


@pytest.fixture(scope="module")
def sharded(
    cluster: Any, images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardedIndex]:
    """The same images in three shards; for tests that do not change it."""
    folder = tmp_path_factory.mktemp("sharded")
    make_shards(folder, images, [0, 250, 260, 600])
    with ShardedIndex.open(folder, deadline=60.0) as index:
        yield index


def _same(got: Any, expected: Any) -> None:
    """Equal up to columns that are padding alone."""
    width = int((expected.ids >= 0).sum(axis=1).max(initial=0))
    np.testing.assert_array_equal(got.ids[:, :width], expected.ids[:, :width])
    np.testing.assert_array_equal(got.distances[:, :width], expected.distances[:, :width])
    assert (got.ids[:, width:] == -1).all()


def _latent(codes: Any) -> Any:
    """Latent values of these codes, as unsure as one likes."""
    sure = np.random.default_rng(0).random((len(codes), BITS), np.float32)
    return np.where(unpack_bits(codes, BITS) == 1, sure, -sure)


def _found(index: Any, codes: Any, features: Any, options: SearchOptions) -> Any:
    return index.search_encoded(codes, features, options, _latent(codes))


def _queries(images: dict[str, Any], n: int = 7) -> tuple[Any, Any]:
    return images["codes"][:n], images["features"][3 : n + 3]


def test_it_answers_as_one_index_does(
    sharded: ShardedIndex, one: HashIndex, images: dict[str, Any]
) -> None:
    index = sharded
    codes, features = _queries(images)
    exclude = np.arange(len(codes))
    for mode in MODES:
        for options in (
            {},
            {"where": {"label": "dog", "shelf": [1, 4]}},
            {"exclude": exclude},
            {"radius": 2} if mode != "es" else {},
            {"pool": 15} if mode in ("acs", "hds") else {},
        ):
            for k in (1, 10, 700):
                got = _found(index, codes, features, SearchOptions(k, mode=mode, **options))
                assert not got.partial
                _same(
                    got,
                    _found(one, codes, features, SearchOptions(k, mode=mode, **options)),
                )
    assert len(index) == len(one)
    assert index.ids().tolist() == one.ids().tolist()
    assert index.records([599, 0, 255]) == one.records([599, 0, 255])
    assert index.records() == one.records()
    assert index.search([255, 3], k=5) == one.search([255, 3], k=5)
    assert index.uris() == one.uris()
    assert index.label_counts() == one.label_counts()
    assert index.info().images == one.info().images
    for exclude in (None, 255):
        counts = index.histogram(codes[0], {"label": "cat"}, exclude)
        np.testing.assert_array_equal(counts, one.histogram(codes[0], {"label": "cat"}, exclude))


def test_errors_of_a_shard_reach_the_caller(sharded: ShardedIndex) -> None:
    index = sharded
    codes = np.zeros((1, 2), np.uint8)
    with pytest.raises(InvalidInputError, match="features"):
        index.search_encoded(codes, None, SearchOptions(3, mode="es"))
    with pytest.raises(InvalidInputError, match="2 bytes"):
        index.search_encoded(np.zeros((1, 3), np.uint8), None, SearchOptions(3, mode="bcs"))
    with pytest.raises(InvalidInputError, match="id 600"):
        index.get(600)


def test_images_are_added_removed_and_kept_after_a_crash(
    cluster: Any, images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, [0, 350, 600])
    with HashIndex.open(tmp_path / "shard-0001") as beyond:  # the catalogue does not know these
        beyond.add_encoded(**part(images, 0, 5))
    index = ShardedIndex.open(tmp_path, deadline=60.0, replicas=2)
    assert len(index) == 605
    assert index.get(600).uri == images["uris"][0]
    shard = index.add_shard()
    more = part(images, 0, 40)
    ids = index.add_encoded(**more)
    assert ids.tolist() == list(range(605, 645))
    assert index.shards[2].folder == shard.folder
    assert index.shards[2].count == 40
    index.remove([3, 255, 644])
    with pytest.raises(InvalidInputError, match="id 255"):
        index.remove([4, 255])
    with HashIndex.create(tmp_path / "expected", bits=BITS, feature_dim=DIM) as expected:
        expected.add_encoded(**images)
        expected.add_encoded(**part(images, 0, 5))
        expected.add_encoded(**more)
        expected.remove([3, 255, 644])
        codes, features = _queries(images)
        for mode in MODES:
            for _ in range(3):  # whichever replica answers
                got = _found(index, codes, features, SearchOptions(50, mode=mode))
                _same(
                    got,
                    _found(expected, codes, features, SearchOptions(50, mode=mode)),
                )
        assert len(index) == len(expected) == 642
    index.close()


def test_what_another_process_adds_is_found(
    cluster: Any, images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, [0, 300, 590])
    codes, features = _queries(images)
    with (
        ShardedIndex.open(tmp_path, deadline=60.0) as reader,
        ShardedIndex.open(tmp_path, deadline=60.0) as writer,
    ):
        reader.search_encoded(codes, features, SearchOptions(20))
        writer.add_encoded(**part(images, 590, 600))
        writer.add_shard()
        ids = writer.add_encoded(**part(images, 0, 3))
        assert ids.tolist() == [600, 601, 602]
        assert reader.get(602).uri == images["uris"][2]
        for mode in MODES:
            got = _found(reader, codes, features, SearchOptions(700, mode=mode))
            _same(
                got,
                _found(writer, codes, features, SearchOptions(700, mode=mode)),
            )
            assert np.isin(ids, got.ids).all()
        assert len(reader) == 603


def test_a_slow_shard_has_a_deadline_and_comes_back(
    cluster: Any, images: dict[str, Any], one: HashIndex, tmp_path: Path
) -> None:
    import ray

    make_shards(tmp_path, images, [0, 300, 600])
    codes, features = _queries(images)
    with ShardedIndex.open(tmp_path, deadline=5.0) as index:
        actor = index._replicas.actors[1][0]
        process = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(process, signal.SIGSTOP)
        try:
            got = index.search_encoded(codes, features, SearchOptions(10))
            assert got.missing == ("shard-0001",)
            assert (got.ids < 300).all()
            hits = index.search(0, k=5)
            assert {hit.id < 300 for hit in hits} == {True}
        finally:
            os.kill(process, signal.SIGCONT)
        limit = time.monotonic() + 120
        while index.search_encoded(codes, features, SearchOptions(10)).partial:
            assert time.monotonic() < limit
        _same(
            index.search_encoded(codes, features, SearchOptions(10)),
            one.search_encoded(codes, features, SearchOptions(10)),
        )


def test_an_actor_killed_during_a_search_is_started_again(
    sharded: ShardedIndex, one: HashIndex, images: dict[str, Any]
) -> None:
    import ray

    index = sharded
    codes, features = _queries(images)
    process = ray.get(index._replicas.actors[1][0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGKILL)
    got = index.search_encoded(codes, features, SearchOptions(10))
    assert not got.partial
    _same(got, one.search_encoded(codes, features, SearchOptions(10)))


def test_a_lost_node_is_answered_for_by_replicas_or_named(
    cluster: Any, images: dict[str, Any], one: HashIndex, tmp_path: Path
) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    make_shards(tmp_path, images, [0, 590, 600])
    doomed = cluster.add_node(
        num_cpus=1, object_store_memory=100 * 2**20, node_ip_address="127.0.0.1"
    )
    codes, features = _queries(images)

    def open_with_one_on(node_id: str, replicas: int, **options: Any) -> ShardedIndex:
        """The first replica of shard 1 on the given node."""
        index = ShardedIndex.open(tmp_path, replicas=replicas, deadline=60.0, **options)
        from hashlens.distributed.cluster import ShardServer

        pinned = ray.remote(ShardServer).options(
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        old = index._replicas.actors[1][0]
        index._replicas.actors[1][0] = pinned.remote(str(tmp_path), 1)
        ray.kill(old)
        assert not index.search_encoded(codes, features, SearchOptions(3)).partial
        return index

    lonely = open_with_one_on(doomed.node_id, 1)
    doubled = open_with_one_on(doomed.node_id, 2)
    cluster.remove_node(doomed, allow_graceful=False)
    limit = time.monotonic() + 60  # the actor lives on until Ray has noticed
    while any(n["NodeID"] == doomed.node_id and n["Alive"] for n in ray.nodes()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    got = lonely.search_encoded(codes, features, SearchOptions(10))
    assert got.missing == ("shard-0001",)
    others = np.arange(590)
    held = np.isin(got.ids, others)
    assert (held | (got.ids == -1)).all()
    assert len(lonely) == lonely.histogram(codes[0]).sum() == 590
    lonely.require_all = True
    with pytest.raises(IndexStoreError, match="shard-0001"):
        lonely.search_encoded(codes, features, SearchOptions(10))
    for _ in range(2):
        whole = doubled.search_encoded(codes, features, SearchOptions(10))
        assert not whole.partial
        _same(whole, one.search_encoded(codes, features, SearchOptions(10)))
    lonely.close()
    doubled.close()


def test_another_models_index_is_refused(sharded: ShardedIndex) -> None:
    index = sharded

    class OtherModel:
        fingerprint = "0" * 64

    with pytest.raises(IndexStoreError, match="use the index's own model"):
        ShardedIndex.open(index.path, OtherModel())  # type: ignore[arg-type]
