"""Searches that cost much and clients that read nothing do not hold up the others."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from serving import Service, process, running
from test_service_lifecycle import connect, wait_until

from hashlens import HashIndex, IndexStoreError, SearchOptions
from hashlens.errors import TimeLimitError
from hashlens.index.store import TimeLimit
from hashlens.service import server
from hashlens.service.engine import Engine
from hashlens.service.limits import Limits

IMAGES = 60_000
# Keys that SQLite's JSON paths cannot name are looked up by a slower function.
COSTLY = {f'"{number}"\\': [None, *range(15)] for number in range(16)}
QUICK = Limits(search_seconds=1.0, send_seconds=1.0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.idx"
    with HashIndex.create(path, bits=64, feature_dim=0) as index:
        codes = np.random.default_rng(0).integers(0, 256, (IMAGES, 8), dtype=np.uint8)
        uris = [f"{i}.jpg" for i in range(IMAGES)]
        metadata = [{"price": i, "words": "some " * 80} for i in range(IMAGES)]
        index.add_encoded(codes, None, uris, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def slow(large: Path) -> Iterator[Service]:
    with running(large, None, QUICK) as service:
        yield service


def _ask(service: Service, where: dict[str, Any], image_id: int = 0) -> httpx.Response:
    data = {"id": str(image_id), "mode": "bcs", "where": json.dumps(where)}
    return httpx.post(f"{service.url}/v1/search", data=data, timeout=60)


def _search(**fields: str) -> bytes:
    """A search as it is sent on the wire."""
    return _post("/v1/search", urlencode(fields))


def _post(path: str, fields: str) -> bytes:
    body = fields.encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_a_block_of_the_library_ends_when_its_time_is_over(large: Path) -> None:
    with HashIndex.open(large) as index:
        codes, options = np.zeros((1, 8), np.uint8), SearchOptions(3, mode="bcs", where=COSTLY)
        with TimeLimit(0.05), pytest.raises(TimeLimitError, match="use fewer or simpler"):
            index.search_encoded(codes, None, options)
        limit = TimeLimit(60)
        threading.Timer(0.05, limit.stop).start()
        with limit, pytest.raises(IndexStoreError):
            index.search_encoded(codes, None, options)
        found = index.search_encoded(codes, None, SearchOptions(3, mode="bcs"))
        assert (found.ids >= 0).all()


def test_a_costly_filter_is_stopped_and_others_are_answered(slow: Service) -> None:
    answers: list[httpx.Response] = []
    asking = [
        threading.Thread(target=lambda at=at: answers.append(_ask(slow, COSTLY, at)))
        for at in range(4)
    ]
    for thread in asking:
        thread.start()
    while any(thread.is_alive() for thread in asking):
        assert slow.client.get("/healthz").status_code == 200
        time.sleep(0.02)
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "took longer than it may" in answer.json()["detail"]
    assert slow.client.get("/readyz").status_code == 200
    assert _ask(slow, {"price": 7}).status_code == 200


def test_a_service_with_a_search_past_its_time_is_not_ready(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, real = threading.Event(), Engine.find

    def stuck(*arguments: Any, **options: Any) -> Any:
        assert hold.wait(60)
        return real(*arguments, **options)

    with running(large, None, Limits(search_seconds=0.1)) as service:
        monkeypatch.setattr(Engine, "find", stuck)
        ready = service.client.get
        assert ready("/readyz").status_code == 200
        asking = threading.Thread(target=_ask, args=(service, {"price": 7}))
        asking.start()
        wait_until(lambda: ready("/readyz").status_code == 503)
        hold.set()
        asking.join()
        assert ready("/readyz").status_code == 200


def test_a_client_that_hangs_up_stops_its_search(large: Path) -> None:
    with running(large, None, Limits(search_seconds=600)) as service:
        engine = service.app.state.engine
        for _ in range(4):  # more than there are threads for searching
            connection = connect(service.url)
            connection.sendall(_search(id="0", mode="bcs", where=json.dumps(COSTLY)))
            wait_until(lambda: engine.slots.taken > 0)
            connection.close()
            wait_until(lambda: engine.slots.taken == 0)
        assert _ask(service, {"price": 7}).status_code == 200


def _silent(service: Service) -> socket.socket:
    """A client that asks for more than the system buffers, then once more, and reads nothing."""
    connection = connect(service.url)
    fields = "&".join(["ids=0"] * 12) + "&k=1000&mode=bcs"
    connection.sendall(_post("/v1/search/batch", fields) + _search(id="0", mode="bcs"))
    return connection


def test_clients_that_read_nothing_hold_up_no_other(large: Path) -> None:
    with running(large, None, Limits(bodies=3, queue=1000)) as service:
        silent = [_silent(service) for _ in range(6)]
        engine = service.app.state.engine
        wait_until(lambda: engine.slots.taken > 0)
        for _ in range(10):  # all are done with searching, and wait to be read
            wait_until(lambda: engine.slots.taken == 0)
            time.sleep(0.1)
        assert [_ask(service, {}, at).status_code for at in range(8)] == [200] * 8
        for connection in silent:
            connection.close()


def test_two_hundred_clients_that_read_nothing_hold_up_no_other(large: Path) -> None:
    """With the limits that a service has by default."""
    with running(large, None) as service:
        engine = service.app.state.engine
        silent = [_silent(service) for _ in range(200)]
        wait_until(lambda: engine.slots.taken > 0)
        wait_until(lambda: engine.slots.taken == 0, seconds=120)
        assert [_ask(service, {}, at).status_code for at in range(8)] == [200] * 8
        for connection in silent:
            connection.close()


def test_a_client_that_reads_nothing_is_hung_up_on(slow: Service) -> None:
    connection = _silent(slow)

    def hung_up() -> bool:
        try:
            connection.send(b"x")
        except ConnectionError:
            return True
        return False

    wait_until(hung_up)
    connection.close()


def test_filters_have_a_bound_and_the_line_names_it(slow: Service) -> None:
    many = _ask(slow, {f"key {number}": 1 for number in range(17)})
    assert many.status_code == 422
    assert "17 keys with 17 values; at most 16 keys and 256 values" in many.json()["detail"]
    long = _ask(slow, {"price": list(range(257))})
    assert (long.status_code, "257 values" in long.json()["detail"]) == (422, True)
    found = _ask(slow, {"price": list(range(256))})
    assert found.status_code == 200
    assert {hit["metadata"]["price"] for hit in found.json()["hits"]} <= set(range(256))


def test_who_waits_when_the_service_leaves_is_told(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[httpx.Response] = []
    monkeypatch.setattr(server, "_GRACE_SECONDS", 0.2)
    with running(large, None, Limits(search_seconds=600)) as service:
        engine = service.app.state.engine
        asking = threading.Thread(target=lambda: answers.append(_ask(service, COSTLY)))
        asking.start()
        wait_until(lambda: engine.slots.taken > 0)
    asking.join()
    assert (answers[0].status_code, answers[0].json()["detail"]) == (
        503,
        "the service stops; ask again later",
    )


@pytest.mark.slow
def test_sigterm_ends_a_queue_of_costly_filters(writable_dir: Path, onnx_file: Path) -> None:
    """Each may take 10 s; together they would take minutes."""
    with HashIndex.open(writable_dir) as index:
        codes, features = index.encoded([0])[1:]
        uris = [f"{i}.jpg" for i in range(IMAGES)]
        metadata = [{"price": i, "words": "some " * 80} for i in range(IMAGES)]
        many = (np.repeat(each, IMAGES, axis=0) for each in (codes, features))
        index.add_encoded(*many, uris, metadata=metadata)
    with process(writable_dir, onnx_file) as (serving, url):
        clients = [connect(url) for _ in range(60)]
        for at, client in enumerate(clients):  # what was computed for one serves no other
            where = {key: [*values[:-1], 100 + at] for key, values in COSTLY.items()}
            client.sendall(_search(id="0", mode="bcs", where=json.dumps(where)))
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(35) == 0  # 30 s, and what it takes to stop
        answers = {client.recv(1000).split(b" ", 2)[1] for client in clients}
        assert answers == {b"200", b"503"}
        for client in clients:
            client.close()


def test_two_hundred_idle_connections_hold_up_no_other(large: Path) -> None:
    """Half say nothing; half send headers letter by letter."""
    with running(large, None) as service:
        idle = [connect(service.url) for _ in range(200)]
        for connection in idle[::2]:
            connection.sendall(b"GET /v1/info HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for letter in b"abcdefgh":
            for connection in idle[::2]:
                connection.sendall(bytes([letter]))
            assert service.client.get("/healthz").status_code == 200
            assert _ask(service, {}).status_code == 200
        for connection in idle:
            connection.close()
