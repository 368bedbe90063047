"""Nodes and the controller are lost: searches end in time, and are whole again after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens import SearchOptions
from hashlens.distributed.serving import ServedShard, ServedShards
from hashlens.distributed.sharded import ShardedIndex

from .sharded_folders import make_shards

pytestmark = pytest.mark.slow

DEADLINE, LATE = 5.0, 30.0
CODE, OPTIONS = np.zeros((1, 2), np.uint8), SearchOptions(5, mode="bcs")


@pytest.fixture
def served(cluster: Any, images: dict[str, Any], tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Shard 0 has a replica on each of two nodes, shard 1 one replica on the second of them."""
    from ray import serve

    make_shards(tmp_path / "index", images, [0, 400, 600])
    common = {"num_cpus": 1, "object_store_memory": 120 * 2**20, "node_ip_address": "127.0.0.1"}
    nodes = [
        cluster.add_node(**common, resources={"slot": 1}),
        cluster.add_node(**common, resources={"slot": 1, "lost": 1}),
    ]
    serve.start(proxy_location="Disabled")
    deployment: Any = serve.deployment
    handles = [
        serve.run(
            deployment(
                ServedShard,
                num_replicas=replicas,
                health_check_period_s=2,
                ray_actor_options={"num_cpus": 0, "resources": {resource: 1}},
            ).bind(str(tmp_path / "index"), position),
            name=f"fault-{position}",
            route_prefix=None,
        )
        for position, (replicas, resource) in enumerate([(2, "slot"), (1, "lost")])
    ]
    index = ShardedIndex(tmp_path / "index", shards=ServedShards(handles, DEADLINE))

    def renew() -> None:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        missing = [_search(index).missing for _ in range(20)]
        # the other replica of shard 0 answers; shard 1 had no other
        assert missing[-1] == ("shard-0001",)
        assert not any("shard-0000" in each for each in missing)
        nodes.append(cluster.add_node(**common, resources={"slot": 1, "lost": 1}))

    yield index, renew
    serve.shutdown()
    for node in nodes:
        cluster.remove_node(node)


def _search(index: ShardedIndex) -> Any:
    began = time.monotonic()
    try:
        return index.search_encoded(CODE, None, OPTIONS)
    finally:
        assert time.monotonic() - began < LATE


def _until(done: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.5)


def test_a_lost_node_costs_what_had_no_replica_elsewhere_until_it_is_replaced(
    served: tuple[ShardedIndex, Callable[[], None]],
) -> None:
    index, lose_a_node_and_add_another = served
    assert not _search(index).missing
    lose_a_node_and_add_another()
    _until(lambda: not _search(index).missing)


def test_searches_go_on_while_the_controller_is_restarted(served: tuple[ShardedIndex, Any]) -> None:
    import ray
    from ray import serve

    index, _ = served
    assert not _search(index).missing  # a router learns of its replicas from the controller
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    ray.kill(controller, no_restart=False)
    for _ in range(20):
        assert not _search(index).missing
    _until(lambda: serve.status().applications["fault-0"].status == "RUNNING")
    assert not _search(index).missing
