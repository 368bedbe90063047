"""One Ray cluster of two nodes on the loopback interface, shared by the tests of this folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens import HashIndex
from hashlens.distributed.cluster import stay_on_loopback

from .sharded_folders import BITS, DIM

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """``ray.cluster_utils.Cluster``; this process is connected to it.

    It ends with this folder's tests, so that no idle node takes part in those that follow.
    """
    from ray.cluster_utils import Cluster

    # else Serve's one proxy asks the front end of its own node alone
    os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"
    stay_on_loopback()
    node = {"num_cpus": 2, "object_store_memory": 120 * 2**20, "node_ip_address": "127.0.0.1"}
    running = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    running.add_node(**node)
    ray.init(address=running.address, log_to_driver=False, logging_level="ERROR")
    yield running
    leave(running)


def leave(running: Any) -> None:
    """Disconnect from `running` and end its processes, also when its head no longer answers."""
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(20)
    if leaving.is_alive():  # it waits for the head, without limit, as long as the head lives
        running.head_node.kill_gcs_server(check_alive=False)
        leaving.join(20)
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


@pytest.fixture(scope="module")
def one(images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[HashIndex]:
    """One index of all images."""
    folder = tmp_path_factory.mktemp("one") / "index"
    with HashIndex.create(folder, bits=BITS, feature_dim=DIM) as index:
        index.add_encoded(**images)
        yield index


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as it starts, saved."""
    import torch

    from hashlens.models.backbones import create_backbone
    from hashlens.models.checkpoint import save_model
    from hashlens.models.description import ModelConfig
    from hashlens.models.latent import LatentHashNet

    torch.manual_seed(3)
    made = create_backbone("smallcnn", channels=1, size=8)
    net = LatentHashNet(made.module, feature_dim=made.feature_dim, bits=24, classes=10)
    config = ModelConfig(
        bits=24,
        feature_dim=made.feature_dim,
        classes=tuple("0123456789"),
        backbone="smallcnn",
        preprocessing=made.preprocessing,
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, net, config)
    return folder
