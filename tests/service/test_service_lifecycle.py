"""Busy, abandoned, stopped and killed: what is promised still holds."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from serving import KEY, draw, png, process, running
from typer.testing import CliRunner

from hashlens import Encoder, HashIndex
from hashlens.cli.main import app as command_line
from hashlens.service.engine import Engine
from hashlens.service.limits import Limits


def form(picture: bytes) -> tuple[bytes, bytes]:
    """Headers and body of a search, as sent on the wire."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    return head, body


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def wait_until(condition: object, *, seconds: float = 30) -> None:
    guard = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < guard
        time.sleep(0.01)


def test_the_kernels_are_loaded_after_the_start(
    index_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()

    def load(search: Callable[[], object]) -> None:
        search()
        loaded.set()

    monkeypatch.setattr("hashlens.service.engine.load_kernels", load)
    with running(index_dir, None):
        assert loaded.wait(60)


in_process = CliRunner(env={"HF_HUB_OFFLINE": "1"})  # which the command sets, taken back after


def hold_encoding(engine: Engine, hold: threading.Event) -> None:
    """Keep all threads that encode busy until the event is set."""
    threads = engine._threads["encode"]
    for _ in range(threads._max_workers):
        threads.submit(hold.wait)


def test_past_the_queue_the_answer_is_503_and_come_back(
    index_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    with running(index_dir, encoder, Limits(queue=2)) as service:
        engine, hold = service.app.state.engine, threading.Event()
        hold_encoding(engine, hold)
        answers: list[httpx.Response] = []

        def ask() -> None:
            files = {"image": picture}
            answers.append(httpx.post(f"{service.url}/v1/search", files=files, timeout=60))

        waiting = [threading.Thread(target=ask) for _ in range(2)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: engine.slots.taken == 2)
        refused = service.client.post("/v1/search", files={"image": picture})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert service.client.get("/healthz").status_code == 200
        hold.set()
        for thread in waiting:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert service.client.post("/v1/search", files={"image": picture}).status_code == 200


def test_the_work_of_a_client_that_left_is_dropped(
    index_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    with running(index_dir, encoder) as service:
        engine, hold = service.app.state.engine, threading.Event()
        hold_encoding(engine, hold)
        # Two become batches that wait for the threads, the third waits for a batch.
        leaving = []
        for taken in (1, 2, 3):
            connection = connect(service.url)
            connection.sendall(b"".join(form(picture)))
            wait_until(lambda taken=taken: engine.slots.taken == taken)
            leaving.append(connection)
            time.sleep(0.2)
        for connection in leaving:
            connection.close()
        wait_until(lambda: engine.slots.taken == 0)
        hold.set()
        assert service.client.post("/v1/search", files={"image": picture}).status_code == 200
        metrics = service.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert values["hashlens_encode_batch_images_sum"] in ("1.0", "2.0", "3.0")
    gone = 'hashlens_requests_total{method="POST",route="/v1/search",status="499"}'
    assert values[gone] == "3.0"


def test_concurrent_pictures_are_encoded_together(
    index_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    with running(index_dir, encoder) as service:
        engine, hold = service.app.state.engine, threading.Event()
        hold_encoding(engine, hold)
        codes: list[str] = []

        def ask() -> None:
            answer = httpx.post(f"{service.url}/v1/search", files={"image": picture}, timeout=60)
            codes.append(answer.json()["query"]["code"])

        threads = [threading.Thread(target=ask) for _ in range(9)]
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.slots.taken == 9)
        hold.set()
        for thread in threads:
            thread.join(60)
        metrics = service.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert values["hashlens_encode_batch_images_sum"] == "9.0"
    assert float(values["hashlens_encode_batch_images_count"]) < 9
    assert len(set(codes)) == 1


def test_sigterm_finishes_what_runs_then_leaves(
    index_dir: Path, onnx_file: Path, picture: bytes
) -> None:
    with process(index_dir, onnx_file) as (server, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
        head, body = form(picture)
        with connect(url) as connection:
            connection.sendall(head + body[:50])
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: _refuses(url))
            connection.sendall(body[50:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.wait(30) == 0


def _refuses(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionError:
        return True
    return False


def test_an_onnx_model_serves_without_torch(
    index_dir: Path, onnx_file: Path, picture: bytes
) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
from fastapi.testclient import TestClient
from hashlens.index.hash_index import HashIndex
from hashlens.models.encoder import Encoder
from hashlens.service.app import create_app
encoder = Encoder.load({str(onnx_file)!r})
with HashIndex.open({str(index_dir)!r}, encoder, read_only=True) as index:
    with TestClient(create_app(index, encoder)) as client:
        answer = client.post("/v1/search", files={{"image": {picture!r}}})
        assert answer.status_code == 200, answer.text
        print(len(answer.json()["hits"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "10", done.stderr


def test_making_an_app_starts_nothing(index_dir: Path, encoder: Encoder) -> None:
    from hashlens.service.app import create_app

    before = threading.active_count()
    with HashIndex.open(index_dir, encoder, read_only=True) as index:
        create_app(index, encoder, Limits())
        assert threading.active_count() == before


def kill_under_load(path: Path, model: Path, seed: int, acknowledged: dict[int, str]) -> None:
    """Add pictures from four clients, and kill the server while they do."""
    with process(path, model, KEY) as (server, url):
        enough = len(acknowledged) + 25

        def add(client_number: int) -> None:
            headers = {"Authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
                for i in range(1000):
                    label = f"{seed}-{client_number}-{i}"
                    data = png(draw("circle", 10_000 * (seed + 1) + 1000 * client_number + i))
                    try:
                        answer = client.post(
                            "/v1/images", files={"image": data}, data={"label": label}
                        )
                    except httpx.HTTPError:
                        return
                    assert answer.status_code in (201, 503), answer.text
                    if answer.status_code == 201:
                        acknowledged[answer.json()["id"]] = label

        clients = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for client in clients:
            client.start()
        wait_until(lambda: len(acknowledged) >= enough, seconds=120)
        server.kill()
        for client in clients:
            client.join(60)


@pytest.mark.parametrize(
    "kills", [1, pytest.param(10, marks=pytest.mark.slow)], ids=lambda kills: f"{kills} kills"
)
def test_a_killed_server_has_every_acknowledged_image(
    writable_dir: Path, onnx_file: Path, kills: int
) -> None:
    acknowledged: dict[int, str] = {}
    for seed in range(kills):
        kill_under_load(writable_dir, onnx_file, seed, acknowledged)
        with HashIndex.open(writable_dir) as index:
            index.verify()
            for image_id, label in acknowledged.items():
                record = index.get(image_id)
                assert record.label == label
                assert Path(record.uri).is_file()
    assert len(acknowledged) >= 25 * kills
    uploads = writable_dir / "uploads"
    assert not [path for path in (uploads, *uploads.iterdir()) if path.stat().st_mode & 0o077]


def _add(url: str, seed: int) -> int:
    answer = httpx.post(
        f"{url}/v1/images",
        headers={"Authorization": f"Bearer {KEY}"},
        files={"image": png(draw("cross", seed))},
        timeout=60,
    )
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def test_two_services_that_write_to_one_index(writable_dir: Path, onnx_file: Path) -> None:
    """Each sees at once what the other added, and no id is given twice."""
    with (
        process(writable_dir, onnx_file, KEY) as (_, one),
        process(writable_dir, onnx_file, KEY) as (_, other),
        ThreadPoolExecutor(4) as clients,
    ):
        ids = list(clients.map(_add, [one, other] * 20, range(40)))
        assert len(set(ids)) == 40
        for url in (one, other):
            last = _add(url, 100)
            for asked in (one, other):
                data = {"id": str(last), "k": "1"}
                answer = httpx.post(f"{asked}/v1/search", data=data, timeout=60)
                assert answer.status_code == 200, answer.text
                assert httpx.get(f"{asked}/v1/images/{ids[0]}", timeout=60).status_code == 200
    with HashIndex.open(writable_dir) as index:
        assert index.verify() == []
        assert len(index) == 90 + 42


@pytest.mark.slow
def test_memory_stays_flat_over_many_requests(writable_dir: Path, onnx_file: Path) -> None:
    adds, searches, rounds = 5_000, 50_000, 10
    sizes = []
    with process(writable_dir, onnx_file, KEY) as (server, url), httpx.Client(timeout=60) as client:
        memory = psutil.Process(server.pid)
        for part in range(rounds):
            for seed in range(part * adds // rounds, (part + 1) * adds // rounds):
                _add(url, seed)
            for number in range(searches // rounds):
                data = {"id": str(number % 90), "k": "10"}
                assert client.post(f"{url}/v1/search", data=data).status_code == 200
            sizes.append(memory.memory_info().rss / 2**20)
    print(f"MiB after each of {rounds} rounds:", *(f"{size:.0f}" for size in sizes))
    assert sizes[-1] < sizes[1] + 32
    with HashIndex.open(writable_dir) as index:
        assert index.verify() == []
        assert len(index) == 90 + adds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.idx"], "nowhere.idx"),
        (["INDEX", "--model", "nowhere"], "nowhere"),
        (["INDEX", "--host", "203.0.113.1", "--port", "1"], "cannot listen"),
        (["INDEX", "--api-key-file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    index_dir: Path, arguments: list[str], message: str
) -> None:
    given = [str(index_dir) if argument == "INDEX" else argument for argument in arguments]
    result = in_process.invoke(command_line, ["serve", *given])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_key_that_others_can_read_is_told(index_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o644)
    arguments = ["serve", str(index_dir), "--api-key-file", str(tmp_path / "key")]
    result = in_process.invoke(command_line, [*arguments, "--host", "203.0.113.1", "--port", "1"])
    assert f"warning: {tmp_path / 'key'} can be read by others: chmod 600" in result.stderr


@pytest.mark.parametrize("key", ["short", "with a space in the key", "nicht-ä-aber-lang-genug"])
def test_a_weak_key_is_refused(index_dir: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    arguments = ["serve", str(index_dir), "--api-key-file", str(tmp_path / "key")]
    result = in_process.invoke(command_line, arguments)
    assert result.exit_code == 1
    assert "openssl rand" in result.stderr


def test_an_index_that_is_replaced_is_served_and_changed_unharmed(
    writable_dir: Path, encoder: Encoder, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = writable_dir.with_name("rebuilt.idx")
    with HashIndex.create(other, encoder) as rebuilt:
        codes, features = encoder.encode([draw("cross", seed) for seed in range(120)])
        rebuilt.add_encoded(codes, features, [f"new/{i}.png" for i in range(120)])
    key = {"Authorization": f"Bearer {KEY}"}
    with running(writable_dir, encoder, key=KEY) as service:
        assert service.client.get("/v1/index").json()["images"] == 90
        writable_dir.rename(writable_dir.with_name("old.idx"))
        other.rename(writable_dir)
        assert service.client.get("/v1/index").json()["images"] == 120
        hits = service.client.post("/v1/search", files={"image": picture}).json()["hits"]
        assert {hit["label"] for hit in hits} == {None}
        refused = service.client.delete("/v1/images/5", headers=key)
        assert (refused.status_code, "replaced" in refused.json()["detail"]) == (409, True)
        assert "the index was replaced by another one" in caplog.text
        assert service.client.delete("/v1/images/5", headers=key).status_code == 204
        added = service.client.post("/v1/images", files={"image": picture}, headers=key)
        assert added.status_code == 201
        assert service.client.get("/v1/index").json()["images"] == 120
    for path, images in ((writable_dir, 120), (writable_dir.with_name("old.idx"), 90)):
        with HashIndex.open(path) as index:
            assert index.verify() == []
            assert len(index) == images


@pytest.mark.skipif(sys.platform == "win32", reason="SIGBUS is not for Windows")
def test_a_service_that_a_cut_file_ends_says_where_it_was() -> None:
    command = (
        "import os, signal; from fastapi import FastAPI\n"
        "from hashlens.service.limits import Limits; from hashlens.service.server import serve\n"
        "end = lambda url: os.kill(os.getpid(), signal.SIGBUS)\n"
        "serve(FastAPI(), '127.0.0.1', 0, Limits(), end)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert "Bus error" in done.stderr


def test_the_page_is_opened_where_that_is_asked_for(
    index_dir: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with process(index_dir, onnx_file, options=("--browser",)) as (_, url):
        wait_until(opened.exists)
    assert opened.read_text().strip() == url
