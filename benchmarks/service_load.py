"""Load on the service: clients on the loopback that ask as fast as they are answered.

    python benchmarks/service_load.py cifar.idx --model model.onnx --queries cifar10#test

Starts ``hashlens serve``, lets each client send its next query once the last is answered, and
prints one JSON object: throughput, latency, statuses, and the server's peak memory. The clients
are one process of asyncio streams that shares the cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from hashlens import HashIndex, open_source
from hashlens.machine import cores

_PICTURES = 500


@dataclass
class Load:
    """What the clients of one run saw."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def request(fields: dict[str, str], picture: bytes | None) -> bytes:
    """A search as bytes on the wire."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if picture is not None:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        parts.append(head + picture + b"\r\n")
    body = b"".join(parts) + b"--x--\r\n"
    return (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


async def client(
    address: tuple[str, int], requests: list[bytes], seed: int, until: float, load: Load
) -> None:
    """Ask until the time is over, one query after the other."""
    chosen = random.Random(seed)
    reader, writer = await asyncio.open_connection(*address)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(chosen.choice(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        load.latencies.append(time.perf_counter() - began)
        status = int(head.split(b" ", 2)[1])
        load.statuses[status] += 1
        if status == 503:
            await asyncio.sleep(1)  # as Retry-After asks
    writer.close()


async def run(
    address: tuple[str, int], requests: list[bytes], clients: int, seconds: float
) -> tuple[Load, float]:
    """All clients at once; what they saw, and the seconds it took."""
    load, began = Load(), time.perf_counter()
    until = began + seconds
    await asyncio.gather(*(client(address, requests, seed, until, load) for seed in range(clients)))
    return load, time.perf_counter() - began


def pictures(spec: str) -> list[bytes]:
    """Pictures to search by, as JPEG."""
    source = open_source(spec)
    rows = np.random.default_rng(0).permutation(len(source))[:_PICTURES]
    found = []
    for row in rows.tolist():
        buffer = io.BytesIO()
        source.load(row).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def peak_memory(pid: int) -> float:
    """The most resident memory a process has had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid}: no VmHWM")


def summary(load: Load, took: float) -> dict[str, object]:
    """Figures of one run."""
    good = np.array(load.latencies) * 1e3
    return {
        "requests": len(good),
        "seconds": round(took, 2),
        "requests_per_second": round(len(good) / took, 1),
        "p50_ms": round(float(np.percentile(good, 50)), 1),
        "p99_ms": round(float(np.percentile(good, 99)), 1),
        "max_ms": round(float(good.max()), 1),
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
    }


def main() -> None:
    """Parse, serve, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--queries", required=True, help="source of the pictures to search by")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--k", type=int, default=10)
    options = parser.parse_args()

    with HashIndex.open(options.index, read_only=True) as index:
        info, ids = index.info(), index.ids()
    chosen = np.random.default_rng(1).choice(ids, min(_PICTURES, len(ids)), replace=False)
    loads = {
        "by picture, hds": [
            request({"k": str(options.k)}, picture) for picture in pictures(options.queries)
        ],
        "by id, hds": [request({"k": str(options.k), "id": str(i)}, None) for i in chosen],
        "by id, bcs": [
            request({"k": str(options.k), "id": str(i), "mode": "bcs"}, None) for i in chosen
        ],
    }
    command = [sys.executable, "-c", "from hashlens.cli.main import main; main()"]
    server = subprocess.Popen(
        [*command, "serve", str(options.index), "--model", options.model, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    results: dict[str, object] = {}
    try:
        url = urlsplit(server.stdout.readline().rsplit(" ", 1)[1].strip())
        assert url.hostname is not None
        assert url.port is not None
        address = (url.hostname, url.port)
        started = peak_memory(server.pid)
        for name, requests in loads.items():
            asyncio.run(run(address, requests, 4, 2))  # caches warm, not counted
            load, took = asyncio.run(run(address, requests, options.clients, options.seconds))
            results[name] = summary(load, took) | {
                "peak_memory_mib": round(peak_memory(server.pid), 1)
            }
    finally:
        server.terminate()
        ended = server.wait(60)
    print(
        json.dumps(
            {
                "index": {"images": info.images, "bits": info.bits, "features": info.feature_dim},
                "clients": options.clients,
                "k": options.k,
                "memory_at_start_mib": round(started, 1),
                "server_exit_status": ended,
                "cores": cores(),
                "python": platform.python_version(),
                "runs": results,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
