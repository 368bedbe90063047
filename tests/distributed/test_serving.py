"""Front ends on Ray Serve answer as one index does, share the actors, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hashlens import HashIndex, IndexStoreError, SearchOptions
from hashlens.distributed.serving import build

from .sharded_folders import make_shards

httpx = pytest.importorskip("httpx", reason="needs the extra 'dev'")

KEY = "0123456789abcdef0123456789abcdef"
APP = "hashlens"


@pytest.fixture(scope="module")
def client(
    cluster: Any, images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Of two front ends over the same images in two shards, on the loopback interface."""
    from ray import serve

    folder = tmp_path_factory.mktemp("sharded")
    make_shards(folder, images, [0, 400, 600])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    os.environ["HASHLENS_API_KEY"] = KEY
    try:
        app = build({"index": str(folder), "front_ends": "2", "deadline": "60"})
    finally:
        del os.environ["HASHLENS_API_KEY"]
    serve.run(app, name=APP, route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as made:
        yield made
    serve.shutdown()


def _shard_processes() -> list[int]:
    import ray
    from ray import serve

    actors = serve.get_deployment_handle("Shards", APP).actors.remote().result(timeout_s=120)
    get_process = [a.__ray_call__.remote(lambda _: os.getpid()) for own in actors for a in own]
    return list(ray.get(get_process, timeout=120))


def _until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 180
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_two_front_ends_answer_as_one_index_does(client: Any, one: HashIndex) -> None:
    answered = set()

    def all_have_answered() -> bool:
        for image_id in (3, 250, 599):
            question = {"id": str(image_id), "k": "25", "mode": "hds"}
            answer = client.post("/v1/search", data=question)
            assert answer.status_code == 200
            _, code, features = one.encoded([image_id])
            (expected,) = one.search_hits(
                code,
                features.astype(np.float32),
                SearchOptions(25, exclude=np.array([image_id])),
            )
            got = [(hit["id"], hit["hamming"], hit["euclidean"]) for hit in answer.json()["hits"]]
            assert got == [(hit.id, hit.hamming, hit.euclidean) for hit in expected]
        metrics = client.get("/metrics").text.splitlines()
        answered.update(line for line in metrics if line.startswith("hashlens_pool_images_created"))
        return len(answered) == 2

    _until(all_have_answered)
    assert len(_shard_processes()) == 2  # one a shard, not one a shard and front end


def test_other_names_are_refused_and_writing_needs_the_key(client: Any) -> None:
    assert client.get("/v1/index", headers={"Host": "elsewhere.example"}).status_code == 421
    assert client.delete("/v1/images/7").status_code == 401


def test_what_one_front_end_removes_no_front_end_finds(client: Any) -> None:
    gone = client.delete("/v1/images/598", headers={"Authorization": f"Bearer {KEY}"})
    assert gone.status_code == 204
    for _ in range(8):  # whichever front end answers
        assert client.get("/v1/index").json()["images"] == 599
        assert client.get("/v1/images/598").status_code == 404


def test_actors_come_back_after_their_owner_was_killed(client: Any) -> None:
    from ray import serve

    before = _shard_processes()
    owner = psutil.Process(before[0]).parent()
    assert owner is not None
    shards = serve.status().applications[APP].deployments["Shards"]
    assert shards.replica_states == {"RUNNING": 1}
    (process,) = (
        p for p in psutil.process_iter(["cmdline"]) if "Shards" in " ".join(p.info["cmdline"] or ())
        and "ServeReplica" in " ".join(p.info["cmdline"] or ())
    )  # fmt: skip
    os.kill(process.pid, signal.SIGKILL)

    def whole_again() -> bool:
        answer = client.post("/v1/search", data={"id": "3", "k": "5", "mode": "bcs"})
        return bool(answer.status_code == 200)

    _until(lambda: not any(psutil.pid_exists(p) for p in before))
    _until(whole_again)
    assert not set(before) & set(_shard_processes())


def test_nothing_is_left_when_the_application_is_deleted(client: Any) -> None:
    from ray import serve

    processes = _shard_processes()
    serve.delete(APP)
    _until(lambda: not any(psutil.pid_exists(p) for p in processes))
    assert APP not in serve.status().applications


def test_a_folder_without_an_index_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="no such file"):
        build({"index": str(tmp_path)})
