"""One Ray cluster of two nodes on the loopback interface, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")

BITS = 16
DIM = 6


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """``ray.cluster_utils.Cluster``; this process is connected to it."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 120 * 2**20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=node)
    running.add_node(num_cpus=2, object_store_memory=120 * 2**20)
    ray.init(address=running.address, log_to_driver=False, logging_level="ERROR")
    yield running
    ray.shutdown()
    running.shutdown()


@pytest.fixture(scope="session")
def images() -> dict[str, Any]:
    """600 encoded images with many ties, as arguments of ``add_encoded``."""
    rng = np.random.default_rng(5)
    n = 600
    return {
        "codes": rng.integers(0, 256, (n, BITS // 8), dtype=np.uint8) & 0b00010111,
        "features": rng.integers(0, 3, (n, DIM)).astype(np.float32),
        "uris": [f"/pictures/{i}.jpg" for i in range(n)],
        "labels": [("cat", "dog", None)[i % 3] for i in range(n)],
        "metadata": [{"shelf": int(i % 5)} for i in range(n)],
    }
