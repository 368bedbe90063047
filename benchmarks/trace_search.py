"""Counts the files that a warm search passes through, and the moves from file to file.

    python benchmarks/trace_search.py [--json]
    PYTHONPATH=/path/to/another/checkout/src python benchmarks/trace_search.py

A profile function sees each Python function of the package that is called, in every
thread, in the order of time. *Files* are the different files among them. *Moves* are the places
where one call follows another in a different file; returning to a caller is not counted. The
first searches, which import modules and compile kernels, are not counted. Threads of one search
may take turns in another order, so each is repeated and the run with the most moves counts. Only
names that every version has are used, so that the numbers of two checkouts can be compared.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

MODEL = Path(__file__).parents[1] / "tests" / "data" / "models" / "format-2.onnx"
WARM_UP, REPEATS = 3, 10


class Trace:
    """The package's files in the order in which their functions are called, while switched on."""

    def __init__(self, package: Path) -> None:
        self._package = f"{package}/"
        self._files: list[str] = []
        self._on = False
        threading.setprofile(self._event)  # threads that start from now on
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._on and event == "call":
            file = frame.f_code.co_filename
            if file.startswith(self._package):
                self._files.append(file[len(self._package) :])

    def of(self, action: Callable[[], Any]) -> dict[str, Any]:
        """Numbers of files and moves of ``action``, by the repetition with the most moves."""
        for _ in range(WARM_UP):
            action()
        return max((self._once(action) for _ in range(REPEATS)), key=lambda found: found["moves"])

    def _once(self, action: Callable[[], Any]) -> dict[str, Any]:
        self._files.clear()
        self._on = True
        try:
            action()
        finally:
            self._on = False
        files = list(self._files)
        moves = sum(a != b for a, b in pairwise(files))
        calls = dict(sorted(Counter(files).items()))
        return {"files": len(calls), "moves": moves, "calls": calls}


def pictures(count: int) -> list[bytes]:
    """Small PNG files of random colours, as bytes."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((24, 24), Image.Resampling.BICUBIC).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def measure(folder: Path) -> dict[str, Any]:
    """Make an index of 60 images in ``folder``, and trace a search of it and of its service."""
    import hashlens

    trace = Trace(Path(hashlens.__file__).parent)
    from fastapi.testclient import TestClient

    from hashlens import Encoder, HashIndex
    from hashlens.service.app import create_app

    *images, query = pictures(61)
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    encoder = Encoder.load(MODEL)
    with HashIndex.create(folder / "trace.idx", encoder) as index:
        index.add(paths, labels=[str(i % 3) for i in range(len(paths))])
    with HashIndex.open(folder / "trace.idx", encoder, read_only=True) as index:

        def search() -> None:
            if len(index.search(query, k=5)) != 5:
                raise RuntimeError("the search did not find 5 images")

        result = {"HashIndex.search(bytes)": trace.of(search)}
        with TestClient(create_app(index, encoder)) as client:

            def post() -> None:
                sent = {"image": ("query.png", query, "image/png")}
                client.post("/v1/search", files=sent, data={"k": "5"}).raise_for_status()

            result["POST /v1/search"] = trace.of(post)
    return result


def main() -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, found in result.items():
        print(f"{name}: {found['files']} files, {found['moves']} moves")
        for file, calls in found["calls"].items():
            print(f"  {calls:5}  {file}")


if __name__ == "__main__":
    main()
