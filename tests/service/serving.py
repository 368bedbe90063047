"""Pictures to index and search by, and a server that runs in a thread."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from hashlens import Encoder, HashIndex
from hashlens.service.app import create_app
from hashlens.service.limits import Limits
from hashlens.service.server import listen, make_server

KEY = "a-key-for-the-tests-of-writing"
LABELS = ("circle", "cross", "stripes")
SIDE = 16


def draw(label: str, seed: int) -> Image.Image:
    """A picture of 16 x 16 pixels of one of three kinds, in random colours."""
    random = np.random.default_rng(seed)
    ground, ink = random.integers(0, 100, 3), random.integers(150, 256, 3)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + random.uniform(-1, 1)
    shapes = {
        "circle": np.hypot(x, y) < random.uniform(4, 7),
        "cross": (abs(x) < 2) | (abs(y) < 2),
        "stripes": (x + y) % 6 < 3,
    }
    pixels = np.where(shapes[label][:, :, None], ink, ground) + random.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Service(NamedTuple):
    """A running service."""

    url: str
    client: httpx.Client
    app: Any
    index: HashIndex


@contextmanager
def running(
    path: Path,
    encoder: Encoder | None,
    limits: Limits | None = None,
    key: str | None = None,
    show_files: bool = False,
) -> Iterator[Service]:
    """Serve an index with uvicorn in a thread."""
    limits = limits or Limits()
    index = HashIndex.open(path, encoder, read_only=key is None)
    app = create_app(index, encoder, limits, api_key=key, show_files=show_files)
    started = threading.Event()
    server = make_server(app, limits, started.set)
    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert started.wait(60)
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Service(url, client, app, index)
        finally:
            server.should_exit = True
            thread.join(60)
            index.close()
    assert not thread.is_alive()


@contextmanager
def process(
    path: Path, model: Path, key: str | None = None, options: tuple[str, ...] = ()
) -> Iterator[tuple[Any, str]]:
    """``hashlens serve`` as a process of its own, and its address."""
    command = "from hashlens.cli.main import main; main()"
    arguments = ["serve", str(path), "--model", str(model), "--port", "0", *options]
    environment = {name: value for name, value in os.environ.items() if name != "HASHLENS_API_KEY"}
    if key is not None:
        environment["HASHLENS_API_KEY"] = key
    server = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        assert " at http" in line, f"the service did not start: {line!r}"
        yield server, line.rsplit(" ", 1)[1].strip()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
