"""The service takes an index in shards as it takes a folder, and says when a shard is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens.distributed.sharded import ShardedIndex

from .sharded_folders import make_shards

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra 'serve'")


def test_it_searches_and_answers_206_without_a_shard(
    cluster: Any, images: dict[str, Any], tmp_path: Path
) -> None:
    import ray

    from hashlens.service.app import create_app
    from hashlens.service.limits import Limits

    make_shards(tmp_path, images, [0, 400, 600])
    with (
        ShardedIndex.open(tmp_path, deadline=60.0) as index,
        testclient.TestClient(create_app(index, None, Limits(), api_key=None)) as client,
    ):
        described = client.get("/v1/index").json()
        assert (described["images"], described["mode"]) == (600, "hds")
        assert client.post("/v1/search", data={"id": "3"}).json()["mode"] == "hds"
        question = {"id": "3", "k": "50", "mode": "bcs", "histogram": "true"}
        whole = client.post("/v1/search", data=question)
        assert whole.status_code == 200
        assert whole.json()["missing"] == []
        assert len(whole.json()["hits"]) == 50
        ray.kill(index._replicas.actors[1][0], no_restart=True)
        partial = client.post("/v1/search", data=question)
        assert partial.status_code == 206
        assert partial.json()["missing"] == ["shard-0001"]
        assert np.array(partial.json()["histogram"]).sum() == 399
        assert all(hit["id"] < 400 for hit in partial.json()["hits"])
        assert client.get("/v1/index").json()["images"] == 400
        lost = client.post("/v1/search", data={**question, "id": "500"})
        assert lost.status_code == 503
        assert str(tmp_path) not in lost.text
        index.require_all = True
        assert client.post("/v1/search", data=question).status_code == 503
