"""Hostile uploads: never a 5xx, memory stays bounded, and the next good request is answered."""

from __future__ import annotations

import functools
import io
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from costly_files import COSTLY, chunk
from fastapi.testclient import TestClient
from large_pictures import LARGE
from PIL import Image
from serving import Service, draw, process, running

from hashlens import Encoder, HashIndex
from hashlens.service.app import create_app
from hashlens.service.limits import Limits
from hashlens.service.uploads import check_header

MEBI = 1024 * 1024
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "ICO", "PPM")


def encoded(random: np.random.Generator, kind: str) -> bytes:
    buffer = io.BytesIO()
    draw("cross", int(random.integers(1000))).resize((64, 64)).save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + rest


def bomb(random: np.random.Generator) -> bytes:
    zeros = zlib.compress(bytes(8 * MEBI), 9)
    makers = (
        lambda: png(int(random.integers(8_000, 2**31)), int(random.integers(8_000, 2**31))),
        lambda: png(40_000, 40_000, data=zeros * 8),
        lambda: png(64, 64, data=zeros * 4),
        lambda: png(64, 64, chunk(b"zTXt", b"a\0\0" + zeros), data=zlib.compress(bytes(64 * 193))),
        lambda: png(64, 64, chunk(b"iCCP", b"a\0\0" + zeros), data=zlib.compress(bytes(64 * 193))),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
        lambda: (
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6)
        ),
    )
    return makers[random.integers(len(makers))]()


def cut(random: np.random.Generator) -> bytes:
    whole = encoded(random, KINDS[random.integers(len(KINDS))])
    return whole[: random.integers(len(whole))]


def flipped(random: np.random.Generator) -> bytes:
    data = np.frombuffer(encoded(random, KINDS[random.integers(len(KINDS))]), np.uint8).copy()
    at = random.integers(0, len(data), random.integers(1, 40))
    data[at] = random.integers(0, 256, len(at), dtype=np.uint8)
    return data.tobytes()


def polyglot(random: np.random.Generator) -> bytes:
    page = b"<html><script>alert(1)</script></html>"
    image = encoded(random, ("JPEG", "PNG", "GIF")[random.integers(3)])
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    return (image + page, page + image, image + archive, image[:6] + b"*/=1;//" + image[6:])[
        random.integers(4)
    ]


def foreign(random: np.random.Generator) -> bytes:
    heads = (
        b"%PDF-1.7\n",
        b"\x7fELF\x02\x01\x01",
        b"PK\x03\x04",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"#!/bin/sh\n",
        b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\n",
        b"",
    )
    return heads[random.integers(len(heads))] + random.bytes(random.integers(0, 3000))


def noise(random: np.random.Generator) -> bytes:
    return random.bytes(int(random.integers(1, 100_000)))


def costly(random: np.random.Generator) -> bytes:
    """Small files that take a decoder long, and the largest picture that is accepted."""
    made = costly_files()
    return made[random.integers(len(made))]


@functools.cache
def costly_files() -> list[bytes]:
    deep = ("png rgba 16", "png palette alpha", "webp rgba", "avif rgba")
    made = [make() for make in COSTLY.values()] + [LARGE[name](3000, 2000) for name in deep]
    return [*made, png(7000, 7000, data=zlib.compress(bytes(7000 * 21_001), 1))]


MAKERS = (bomb, cut, flipped, polyglot, foreign, noise, costly)
NAMES = ("../../etc/passwd", "a\r\nb.png", "\0.png", "x" * 3000, "a.php", "", "é\u202egnp.exe")
TYPES = ("image/png", "image/svg+xml", "text/html", "multipart/form-data", "a/" + "b" * 500, "x")


def send_form(client: httpx.Client, random: np.random.Generator) -> int:
    """One form with hostile bytes, file name, type and fields."""
    data = MAKERS[random.integers(len(MAKERS))](random)
    name = NAMES[random.integers(len(NAMES))]
    kind = TYPES[random.integers(len(TYPES))]
    fields = {"k": str(random.integers(0, 12)), "where": "{}" if random.integers(10) else "[" * 99}
    field = ("image", "images", "file")[random.choice(3, p=(0.7, 0.2, 0.1))]
    path = "/v1/search/batch" if field == "images" else "/v1/search"
    try:
        return client.post(path, files={field: (name, data, kind)}, data=fields).status_code
    except httpx.RemoteProtocolError:
        return 0  # hung up on, which is an answer too


def send_raw(address: tuple[str, int], random: np.random.Generator) -> int:
    """One request that is malformed itself; the status, or 0 if the service hung up."""
    body = random.bytes(200)
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    form = b"Content-Type: multipart/form-data; boundary="
    requests = (
        head + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        head + b"".join(b"X%d: a\r\n" % i for i in range(5000)) + b"\r\n",
        head + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
        head + b"Content-Length: -5\r\n\r\n" + body,
        head + b"Content-Length: 300\r\nTransfer-Encoding: chunked\r\n\r\n" + body,
        head + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n" + body,
        head + form + b"\r\nContent-Length: 200\r\n\r\n" + body,
        head + form + b"x; charset=rot13\r\nContent-Length: 80\r\n\r\n--x\r\nContent-Disposition: "
        b'form-data; name="id"\r\n\r\n' + b"7" * 12 + b"\r\n--x--\r\n",
        head + form + b"x\r\nContent-Length: 200\r\n\r\n--x\r\n" + body,
        head + form + b"x\r\nContent-Length: 30000\r\n\r\n" + b"--x\r\n\r\n\r\n" * 3000,
        b"POST /v1/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /assets/..%2f..%2f..%2fapp.py HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/images/..%2f..%2fetc/thumbnail HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" + body,
        body,
    )
    with socket.create_connection(address, timeout=20) as connection:
        try:
            connection.sendall(requests[random.integers(len(requests))])
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except ConnectionError:
            return 0
    assert b"Traceback" not in answer
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture(scope="module")
def attacked(index_dir: Path, onnx_file: Path) -> Iterator[tuple[psutil.Process, str]]:
    with process(index_dir, onnx_file) as (server, url):
        yield psutil.Process(server.pid), url


def peak_memory(server: psutil.Process) -> int:
    """Most bytes the process has had in memory; those it has now where that is not told."""
    try:
        status = Path(f"/proc/{server.pid}/status").read_text()
    except FileNotFoundError:
        return int(server.memory_info().rss)
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def begin_slow_bodies(address: tuple[str, int], count: int) -> list[socket.socket]:
    """Uploads of which a byte has come."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\n"
    form = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n-"
    slow = [socket.create_connection(address, timeout=60) for _ in range(count)]
    for connection in slow:
        connection.sendall(head + form)
    return slow


def end_slow_bodies(slow: list[socket.socket]) -> Counter[int]:
    """How each was answered: 408, when its time was up."""
    seen: Counter[int] = Counter()
    for connection in slow:
        with connection:
            answer = connection.recv(4096)
            seen[int(answer.split(b" ", 2)[1])] += 1
    return seen


def attack(
    attacked: tuple[psutil.Process, str], count: int, seed: int, picture: bytes, slow: int = 0
) -> None:
    """Send ``count`` hostile requests, ``slow`` of them bodies that never come to an end."""
    server, url = attacked
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    random = np.random.default_rng(seed)
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=30) as client:
        good = client.post("/v1/search", files={"image": picture}).json()["hits"]
        before = server.memory_info().rss
        address = (parts.hostname, parts.port)
        waiting = begin_slow_bodies(address, slow)
        for i in range(count - slow):
            if i % 4 == 3:
                seen[send_raw(address, random)] += 1
            else:
                seen[send_form(client, random)] += 1
        assert client.post("/v1/search", files={"image": picture}).json()["hits"] == good
        slowly = end_slow_bodies(waiting)
        lines = client.get("/metrics").text
    grown = peak_memory(server) - before
    print(f"{dict(seen)}, slow bodies {dict(slowly)}; memory {before / MEBI:.0f} MiB before,")
    print(f"{(before + grown) / MEBI:.0f} MiB at its peak")
    assert set(slowly) <= {408}
    assert not [status for status in seen if status >= 500], seen
    assert seen[422] > count / 5
    assert seen[413] > 0
    assert 'status="5' not in lines
    assert grown < 600 * MEBI, f"{grown / MEBI:.0f} MiB"


def test_two_hundred_hostile_requests(attacked: tuple[psutil.Process, str], picture: bytes) -> None:
    attack(attacked, 200, 1, picture)


@pytest.mark.slow
def test_two_thousand_hostile_requests(
    attacked: tuple[psutil.Process, str], picture: bytes
) -> None:
    attack(attacked, 2000, 2, picture, slow=40)


def largest(name: str, memory: int) -> bytes:
    """A picture of this kind that takes nearly as much memory as may be."""
    make, limits = LARGE[name], Limits(decoding_bytes=1 << 40)
    small = make(4000, 50)
    fixed = check_header(make(4000, 1), limits).decoding_bytes
    each = (check_header(small, limits).decoding_bytes - fixed) / 49
    return make(4000, min(12_400, int((memory - fixed) / each * 0.985)))


@pytest.mark.slow
def test_four_of_the_largest_pictures_at_once_take_less_than_one_and_a_half_gigabytes(
    index_dir: Path, onnx_file: Path, picture: bytes
) -> None:
    most = Limits().decoding_bytes
    with process(index_dir, onnx_file) as (server, url), httpx.Client(timeout=120) as client:
        for name in LARGE:
            data = largest(name, most)

            def send(_: int, data: bytes = data) -> int:
                return client.post(f"{url}/v1/search", files={"image": data}).status_code

            with ThreadPoolExecutor(4) as pool:
                seen = Counter(pool.map(send, range(4)))
            peak = peak_memory(psutil.Process(server.pid))
            told = check_header(data, Limits()).decoding_bytes
            print(f"{name}: {dict(seen)}, told {told / MEBI:.0f} MiB, peak {peak / MEBI:.0f} MiB")
            assert set(seen) <= {200, 413, 503}
            assert peak < 1536 * MEBI
        assert client.post(f"{url}/v1/search", files={"image": picture}).status_code == 200


@pytest.fixture(scope="module")
def impatient(index_dir: Path, encoder: Encoder) -> Iterator[Service]:
    with running(index_dir, encoder, Limits(header_seconds=0.3, body_seconds=0.3)) as service:
        yield service


@pytest.fixture(scope="module")
def narrow(index_dir: Path, encoder: Encoder) -> Iterator[Service]:
    limits = Limits(upload_bytes=50_000, body_bytes=100_000, bodies=4)
    with running(index_dir, encoder, limits) as service:
        yield service


def connection_to(service: Service) -> socket.socket:
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_slow_headers_are_hung_up_on(impatient: Service) -> None:
    with connection_to(impatient) as connection:
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert connection.recv(100) == b""
    with connection_to(impatient) as silent:
        assert silent.recv(100) == b""


def test_a_slow_body_is_refused(impatient: Service) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\n"
    form = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
    connections = [connection_to(impatient) for _ in range(4)]
    for connection in connections:
        connection.sendall(head + form)
    answers = [connection.recv(4096) for connection in connections]
    assert [answer.split(b" ")[1] for answer in answers] == [b"408"] * 4
    for connection in connections:
        connection.close()
    assert impatient.client.post("/v1/search", data={"id": 3}).status_code == 200


def test_more_bodies_at_once_than_allowed_are_refused(narrow: Service) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\n"
    form = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
    connections = [connection_to(narrow) for _ in range(4)]
    for connection in connections:
        connection.sendall(head + form)
    guard = time.monotonic() + 20
    while (answer := narrow.client.post("/v1/search", data={"id": 3})).status_code != 503:
        assert time.monotonic() < guard  # the four may not have been read yet
    assert answer.headers["retry-after"] == "1"
    for connection in connections:
        connection.close()
    while narrow.client.post("/v1/search", data={"id": 3}).status_code != 200:
        assert time.monotonic() < guard


@pytest.mark.parametrize("size", [60_000, 200_000])
def test_large_uploads_are_refused(narrow: Service, size: int) -> None:
    response = narrow.client.post("/v1/search", files={"image": bytes(size)})
    assert response.status_code == 413
    assert "at most" in response.json()["detail"]


def test_a_large_body_of_unknown_length_is_refused(narrow: Service) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    pieces = (part if i == 0 else b"x" * 10_000 for i in range(30))
    try:
        response = narrow.client.post("/v1/search", content=pieces, headers=headers)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return  # hung up on while still sending
    assert response.status_code == 413


def test_every_answer_carries_the_protective_headers(service: Service) -> None:
    for path in ("/", "/assets/app.js", "/v1/index", "/nowhere", "/v1/images/x", "/metrics"):
        headers = service.client.get(path, headers={"Origin": "https://example.org"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    assert service.client.options("/v1/search").status_code == 405


@pytest.mark.parametrize(
    ("broken_by", "status", "detail"),
    [
        ("a closed index", 503, "the index, or a shard of it, cannot be read now"),
        ("an index that is none", 500, "internal error"),
    ],
)
def test_an_error_inside_tells_nothing(
    index_dir: Path, encoder: Encoder, broken_by: str, status: int, detail: str
) -> None:
    with running(index_dir, encoder) as broken:
        if broken_by == "a closed index":
            broken.index.close()
        else:
            broken.index.search_hits = None  # type: ignore[assignment,method-assign]
        response = broken.client.post("/v1/search", data={"id": 1})
        assert response.status_code == status
        assert response.json() == {"detail": f"{detail}; the server's log says more"}
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/v1/index", "/v1/images", "/v1/images/1", "/v1/images/1/thumbnail", "/metrics"]
)
def test_an_index_that_cannot_be_read_is_described_and_answered(
    index_dir: Path, encoder: Encoder, path: str
) -> None:
    with running(index_dir, encoder) as broken:
        described = broken.client.get("/v1/openapi.json").json()["paths"]
        assert "503" in described[path.replace("/1", "/{id}")]["get"]["responses"]
        broken.index.close()
        assert broken.client.get(path).status_code == 503


def test_an_image_with_a_real_orientation_is_turned(service: Service) -> None:
    upright, turned = io.BytesIO(), io.BytesIO()
    picture = draw("stripes", 77).resize((32, 16))
    picture.save(upright, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    first, second = (
        service.client.post("/v1/search", files={"image": data.getvalue()}).json()["query"]
        for data in (upright, turned)
    )
    assert first == second


def test_a_name_that_is_not_this_machine_is_refused(index_dir: Path, encoder: Encoder) -> None:
    with HashIndex.open(index_dir, encoder, read_only=True) as index:
        app = create_app(index, encoder, host_names=["localhost", "[::1]"])
        with TestClient(app, base_url="http://localhost:8080") as client:
            for host, status in (("localhost:8080", 200), ("LOCALHOST", 200), ("[::1]:80", 200)):
                assert client.get("/healthz", headers={"Host": host}).status_code == status
            for host in ("evil.example.org", "localhost.evil.org", "", "127.0.0.1:8080"):
                assert client.get("/v1/images", headers={"Host": host}).status_code == 421
