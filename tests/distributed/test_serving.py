"""Shards on Ray Serve answer as one index, share the load, and go on when parts fail."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hashlens import HashIndex, IndexStoreError, InvalidInputError, SearchOptions
from hashlens.distributed.serving import ServedShards, build
from hashlens.distributed.sharded import ShardedIndex
from hashlens.distributed.snapshots import read_manifest, write_manifest

from .sharded_folders import make_shards, numbered, part

httpx = pytest.importorskip("httpx", reason="needs the extra 'dev'")

KEY = "0123456789abcdef0123456789abcdef"
APP = "hashlens"
BOUNDS = [0, 400, 600]


@pytest.fixture(scope="module")
def folder(images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharded")
    make_shards(made, images, BOUNDS)
    return made


@pytest.fixture(scope="module")
def client(cluster: Any, folder: Path) -> Iterator[Any]:
    """Of two front ends over two shards, each with two replicas, on the loopback interface."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    os.environ["HASHLENS_API_KEY"] = KEY
    try:
        app = build({"index": str(folder), "front_ends": "2", "replicas": "2", "deadline": "20"})
    finally:
        del os.environ["HASHLENS_API_KEY"]
    serve.run(app, name=APP, route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as made:
        yield made
    serve.shutdown()


def _handle(name: str) -> Any:
    from ray import serve

    return serve.get_deployment_handle(name, APP)


def _processes(name: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "ServeReplica" in words and name in words:
            found.append(process)
    return found


def _until(done: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_front_ends_answer_as_one_index_does(client: Any, one: HashIndex) -> None:
    for image_id in (3, 250, 599):
        own = int(numbered([image_id], BOUNDS)[0])
        for mode in ("bcs", "es"):
            question = {"id": str(own), "k": "25", "mode": mode}
            answer = client.post("/v1/search", data=question)
            assert answer.status_code == 200, answer.text
            _, code, features = one.encoded([image_id])
            options = SearchOptions(25, mode=mode, exclude=np.array([image_id]))
            (expected,) = one.search_hits(code, features.astype(np.float32), options)
            got = [(hit["id"], hit["hamming"]) for hit in answer.json()["hits"]]
            wanted = [(int(numbered([h.id], BOUNDS)[0]), h.hamming) for h in expected]
            assert got == wanted


def test_replicas_share_the_calls(client: Any, folder: Path) -> None:
    handle, published = _handle("Shard-0000"), read_manifest(folder).shards[0].folder

    def call(_: int) -> int:
        return int(handle.ask.remote(published, lambda _: os.getpid()).result(timeout_s=60))

    with ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(call, range(60)))
    assert set(answered) == {process.pid for process in _processes("Shard-0000")}
    assert min(answered.count(pid) for pid in set(answered)) > 5


def test_writing_needs_the_key_and_other_names_are_refused(client: Any) -> None:
    assert client.get("/v1/index", headers={"Host": "elsewhere.example"}).status_code == 421
    assert client.delete("/v1/images/7").status_code == 401


def test_searches_go_on_while_versions_are_published(
    client: Any, folder: Path, images: dict[str, Any]
) -> None:
    failed: list[str] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            answer = client.post("/v1/search", data={"id": "3", "k": "5", "mode": "bcs"})
            if answer.status_code != 200:
                failed.append(f"{answer.status_code} {answer.text}")

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        index = ShardedIndex.open(folder)
        for _ in range(5):
            index.add_encoded(**part(images, 0, 10))
        gone = int(numbered([598], BOUNDS)[0])
        removed = client.delete(f"/v1/images/{gone}", headers={"Authorization": f"Bearer {KEY}"})
        assert removed.status_code == 204, removed.text
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[:3]
    for _ in range(6):  # whichever front end and replica answers
        assert client.get("/v1/index").json()["images"] == 649
        assert client.get(f"/v1/images/{gone}").status_code == 404


def test_a_killed_replica_is_no_lost_answer(client: Any) -> None:
    before = {process.pid for process in _processes("Shard-0001")}
    os.kill(min(before), signal.SIGKILL)
    for _ in range(10):
        answer = client.post("/v1/search", data={"id": "3", "k": "5", "mode": "bcs"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["missing"] == []
    _until(lambda: len({process.pid for process in _processes("Shard-0001")} - before) == 1)


def test_a_hung_shard_is_left_out_and_the_others_answer(
    cluster: Any, client: Any, folder: Path
) -> None:
    """All replicas of one shard hang, under eight clients."""
    handles = [_handle("Shard-0000"), _handle("Shard-0001")]
    index = ShardedIndex(folder, shards=ServedShards(handles, 3.0))
    code = np.zeros((1, 2), np.uint8)
    options = SearchOptions(5, mode="bcs")
    assert not index.search_encoded(code, None, options).missing
    hung = _processes("Shard-0001")
    for process in hung:
        process.suspend()
    try:
        seconds: list[float] = []

        def search(_: int) -> Any:
            began = time.monotonic()
            found = index.search_encoded(code, None, options)
            seconds.append(time.monotonic() - began)
            return found

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(search, range(80)))
    finally:
        for process in hung:
            if process.is_running():
                process.resume()
    assert {found.missing for found in answers} == {("shard-0001",)}
    assert all((found.ids >> 40 == 0).all() for found in answers)
    assert max(seconds) < 30  # no search waits for others' deadlines
    # those that come while the shard rests do not wait for it
    assert sum(each < 2.0 for each in seconds) > 60
    index.require_all = True
    with pytest.raises(IndexStoreError, match="shard-0001 did not answer in time"):
        index.search_encoded(code, None, options)
    index.require_all = False
    _until(lambda: not index.search_encoded(code, None, options).missing)


def test_errors_of_a_shard_are_said_as_they_are(client: Any, folder: Path) -> None:
    handles = [_handle("Shard-0000"), _handle("Shard-0001")]
    index = ShardedIndex(folder, shards=ServedShards(handles, 20.0))
    with pytest.raises(InvalidInputError, match="features"):
        index.search_encoded(np.zeros((1, 2), np.uint8), None, SearchOptions(3, mode="es"))
    with pytest.raises(InvalidInputError, match="image in the index"):
        index.get(399 + 10_000)


def test_a_shard_that_cannot_be_read_is_missing_and_asked_again_at_once(
    client: Any, folder: Path, tmp_path: Path
) -> None:
    asked = ServedShards([_handle("Shard-0000"), _handle("Shard-0001")], 20.0)
    manifest = read_manifest(folder)
    gone = replace(manifest.shards[1], folder="shard-0001.v0-gone")
    write_manifest(tmp_path, replace(manifest, shards=(manifest.shards[0], gone)))
    question = (np.zeros((1, 2), np.uint8), None, SearchOptions(5, mode="bcs"))
    found = ShardedIndex(tmp_path, shards=asked).search_encoded(*question)
    assert found.missing == ("shard-0001",)
    assert (found.ids >> 40 == 0).all()
    with pytest.raises(IndexStoreError, match=r"shard-0001: .*v0-gone"):
        ShardedIndex(tmp_path, shards=asked, require_all=True).search_encoded(*question)
    assert not ShardedIndex(folder, shards=asked).search_encoded(*question).missing


def test_searches_go_on_through_storage_that_is_gone_and_back(client: Any, folder: Path) -> None:
    """No process ends meanwhile, through two health checks of each."""
    before = {process.pid for process in _processes("hashlens")}
    published = folder / read_manifest(folder).shards[1].folder

    def search() -> Any:
        return client.post("/v1/search", data={"id": "3", "k": "5", "mode": "bcs"})

    def is_whole() -> bool:
        answer = search()
        return answer.status_code == 200 and answer.json()["missing"] == []

    assert is_whole()
    for place, status, said in (
        (published, 206, '"missing":["shard-0001"]'),
        (folder, 503, "cannot be read now"),
    ):
        away = place.with_name(f"{place.name}-away")
        place.rename(away)
        try:
            limit = time.monotonic() + 7
            while time.monotonic() < limit:
                answer = search()
                assert answer.status_code == status
                assert said in answer.text.replace('": ', '":')
        finally:
            away.rename(place)
        _until(is_whole)
    assert {process.pid for process in _processes("hashlens")} == before


def test_a_shard_that_came_later_is_missing_until_the_application_is_started_again(
    client: Any, folder: Path, images: dict[str, Any]
) -> None:
    index = ShardedIndex.open(folder)
    index.add_shard()
    (new,) = index.add_encoded(**part(images, 0, 1))
    assert new >> 40 == 2
    found = client.post("/v1/search", data={"id": "3"})
    assert found.status_code == 206
    assert found.json()["missing"] == ["shard-0002"]
    assert {hit["id"] >> 40 for hit in found.json()["hits"]} <= {0, 1}


def test_a_shard_that_is_damaged_from_the_start_is_missing(
    client: Any, images: dict[str, Any], tmp_path: Path
) -> None:
    from ray import serve

    make_shards(tmp_path, images, BOUNDS)
    damaged = tmp_path / read_manifest(tmp_path).shards[1].folder / "index.sqlite"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"x")
    serve.run(build({"index": str(tmp_path)}), name="damaged", route_prefix="/damaged")

    def search() -> Any:
        return client.post("/damaged/v1/search", data={"id": "3", "mode": "bcs"})

    assert search().status_code == 206
    assert search().json()["missing"] == ["shard-0001"]
    assert {hit["id"] >> 40 for hit in search().json()["hits"]} == {0}
    assert client.get("/damaged/v1/index").json()["images"] == 400
    damaged.write_bytes(whole)
    assert search().json()["missing"] == []
    serve.delete("damaged")
    _until(lambda: len(_processes("Shard-")) == 4)


def test_nothing_is_left_when_the_application_is_deleted(client: Any) -> None:
    from ray import serve

    processes = [process.pid for process in _processes("Shard-")]
    assert len(processes) == 4
    serve.delete(APP)
    _until(lambda: not any(psutil.pid_exists(pid) for pid in processes))
    assert APP not in serve.status().applications


def test_wrong_options_and_folders_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="no such file"):
        build({"index": str(tmp_path)})
    for options, message in (
        ({}, "index: field required"),
        ({"index": "x", "replicas": "0"}, "replicas: input should be greater"),
        ({"index": "x", "deadline": "soon"}, "deadline: input should be a valid number"),
        ({"index": "x", "speed": "1"}, "speed: extra inputs are not permitted"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            build(options)
