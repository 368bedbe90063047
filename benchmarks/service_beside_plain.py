"""The service next to the smallest app that does the same: FastAPI, Pillow, ONNX Runtime, FAISS.

    python benchmarks/service_beside_plain.py shop.idx --model model.onnx --queries photos

Both serve the same codes with the same network; the plain app checks nothing, and searches by
codes. Queries are the source's pictures as JPEGs of 640 x 480. The two take turns, only one is
asked at a time; clients are one process that shares the cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from fastapi import FastAPI, File, Form, UploadFile
from PIL import Image

from hashlens import HashIndex, open_source
from hashlens.bench.timing import environment, machine_line
from hashlens.codes.threads import thread_count
from service_load import peak_memory, request, run, summary

PICTURES = 200


def serve_plain(index_path: Path, model: Path) -> None:
    """The plain app: a picture in, ids and distances out."""
    import faiss
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    described = json.loads(session.get_modelmeta().custom_metadata_map["hashlens"])
    made = described["preprocessing"]
    size, mean, std = (np.array(made[name], np.float32) for name in ("size", "mean", "std"))
    side = int(size)
    with HashIndex.open(index_path, read_only=True) as index, index.one_commit() as view:
        codes, ids = np.array(view.snapshot.codes), index.ids()
    flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
    flat.add(codes)
    app = FastAPI()

    @app.post("/v1/search")
    def search(image: UploadFile = File(), k: int = Form(10)) -> dict[str, Any]:  # noqa: B008
        picture = Image.open(image.file).convert("RGB")
        small = picture.resize((side, side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(small, np.float32) / 255 - mean) / std
        latent = session.run(["latent"], {"images": pixels.transpose(2, 0, 1)[None]})[0]
        code = np.packbits(latent > 0, axis=1, bitorder="little")
        distances, found = flat.search(code, k)
        return {"ids": ids[found[0]].tolist(), "distances": distances[0].tolist()}

    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)

    async def serve() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"plain app at http://127.0.0.1:{port}", flush=True)
        await task

    asyncio.run(serve())


def start(command: list[str]) -> tuple[subprocess.Popen[str], tuple[str, int], float]:
    """A server, its address, and the seconds until it told that."""
    began = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = urlsplit(server.stdout.readline().rsplit(" ", 1)[1].strip())
    assert url.hostname is not None
    assert url.port is not None
    return server, (url.hostname, url.port), time.perf_counter() - began


def cpu_seconds(pid: int) -> float:
    """Seconds of a core that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def photographs(spec: str) -> list[bytes]:
    """Pictures of a source as a phone or a shop might send them."""
    source = open_source(spec)
    found = []
    for row in range(min(PICTURES, len(source))):
        buffer = io.BytesIO()
        source.load(row).convert("RGB").resize((640, 480)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def main() -> None:
    """Serve both, let them take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--model", required=True, type=Path, help="an exported .onnx")
    parser.add_argument("--queries", help="source of the pictures to search by")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8, help="of each turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="only serve the plain app")
    options = parser.parse_args()
    if options.plain:
        serve_plain(options.index, options.model)
        return
    own = [str(options.index), "--model", str(options.model)]
    cli = [sys.executable, "-c", "from hashlens.cli.main import main; main()", "serve"]
    servers = {
        "hashlens serve": start([*cli, *own, "--port", "0"]),
        "plain app": start([sys.executable, __file__, *own, "--plain"]),
    }
    photos = photographs(options.queries)
    requests = {
        "hashlens serve": [request({"k": "10", "mode": "bcs"}, photo) for photo in photos],
        "plain app": [request({"k": "10"}, photo) for photo in photos],
    }
    print(machine_line(environment(thread_count())))
    print("\n| clients | | requests a second, median | p50, ms | p99, ms, median | CPU ms | MiB |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    try:
        for clients in options.clients:
            seen: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, (server, address, _took) in servers.items():
                    asyncio.run(run(address, requests[name], clients, 1))  # not counted
                    before = cpu_seconds(server.pid)
                    load, took = asyncio.run(run(address, requests[name], clients, options.seconds))
                    assert load.statuses.keys() == {200}, load.statuses
                    used = (cpu_seconds(server.pid) - before) / len(load.latencies)
                    seen[name].append(summary(load, took) | {"cpu_ms": 1e3 * used})
            rates = {}
            for name, runs in seen.items():
                rate, p50, p99, used = (
                    np.array([each[what] for each in runs])
                    for what in ("requests_per_second", "p50_ms", "p99_ms", "cpu_ms")
                )
                rates[name] = rate
                print(
                    f"| {clients} | {name} | {rate.max():.0f}, {np.median(rate):.0f} "
                    f"| {p50.min():.1f} | {p99.min():.1f}, {np.median(p99):.1f} | {used.min():.1f} "
                    f"| {peak_memory(servers[name][0].pid):.0f} |"
                )
            ours, plain = rates["hashlens serve"], rates["plain app"]
            print(
                f"| {clients} | ratio | {ours.max() / plain.max():.2f}, "
                f"{np.median(ours) / np.median(plain):.2f} | | | | |",
                flush=True,
            )
    finally:
        for server, _, _ in servers.values():
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
