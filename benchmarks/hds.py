"""HDS end to end on an index of 1,124,087 images, and the rate of adding.

    python benchmarks/hds.py FOLDER [--n 1124087] [--width 4096] [--bits 128]

FOLDER takes the index (9.3 GB at the default size); it is made once and used again. Features are
synthetic: 116 classes, each a random non-negative centre of which a fifth of the values is not
zero, as after a ReLU, plus noise; codes are signs of random projections of them. Queries are
further images of the same classes. Each figure is taken in a process of its own where memory or
opening is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import HashIndex, SearchOptions, pack_bits

CLASSES = 116
CHUNK = 8192


class Images:
    """Codes and features of synthetic images, in chunks."""

    def __init__(self, width: int, bits: int) -> None:
        rng = np.random.default_rng(0)
        sparse = rng.random((CLASSES, width)) < 0.2
        self._centres = (sparse * rng.gamma(2, 1, (CLASSES, width))).astype(np.float32)
        self._planes = rng.standard_normal((width, bits)).astype(np.float32)
        self._noise = rng.standard_normal(1 << 24).astype(np.float32)
        self._shift = self._centres.mean(axis=0) @ self._planes

    def make(self, count: int, seed: int) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, CLASSES, count)
        features = self._centres[classes]
        width = features.shape[1]
        starts = rng.integers(0, len(self._noise) - width, count)
        for row, start in zip(features, starts, strict=True):
            row += 0.5 * self._noise[start : start + width]
        np.maximum(features, 0, out=features)
        return pack_bits(features @ self._planes >= self._shift), features, classes


def make_index(folder: Path, n: int, width: int, bits: int) -> Path:
    path = folder / f"hds-{n}-{width}-{bits}.idx"
    if path.exists():
        with HashIndex.open(path) as index:
            if len(index) == n:
                return path
        shutil.rmtree(path)
    images = Images(width, bits)
    began = time.perf_counter()
    with HashIndex.create(path, bits=bits, feature_dim=width) as index:
        for at in range(0, n, CHUNK):
            codes, features, classes = images.make(min(CHUNK, n - at), 1 + at)
            index.add_encoded(
                codes,
                features,
                [f"/photos/{at + i}.jpg" for i in range(len(codes))],
                [f"class {c}" for c in classes],
            )
    print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return path


def measure_opening(path: Path) -> dict[str, float]:
    """In a new process: seconds to open, and resident memory after it."""
    code = (
        "import sys, time\n"
        "from hashlens import HashIndex\n"
        "began = time.perf_counter(); index = HashIndex.open(sys.argv[1]); n = len(index)\n"
        "took = time.perf_counter() - began\n"
        "status = open('/proc/self/status').read()\n"
        "print(took, int(status.split('VmHWM:')[1].split()[0]) / 1024)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
        for _ in range(5)
    ]
    seconds, memory = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {"open_s_median": float(np.median(seconds)), "open_rss_mib": max(memory)}


def drop_from_memory(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_into_memory(path: Path) -> None:
    """Read the file once, so that its pages are in memory, where there is enough."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def percentiles(times: list[float]) -> dict[str, float]:
    found = {f"p{p}": float(np.percentile(times, p)) for p in (50, 99)}
    return {"min": min(times), **found}


def measure_queries(path: Path, width: int, bits: int, queries: int) -> dict[str, Any]:
    """One query after the other: code and feature are ready, ids and distances come back."""
    codes, features, _ = Images(width, bits).make(queries, 10**9)
    result: dict[str, Any] = {}
    file = path / "features.1"

    def times(search: Any, count: int, **how: Any) -> list[float]:
        found = []
        for i in range(count):
            began = time.perf_counter()
            search(codes[i : i + 1], features[i : i + 1], SearchOptions(10, **how))
            found.append(1000 * (time.perf_counter() - began))
        return found

    drop_from_memory(file)
    with HashIndex.open(path, read_only=True) as index:
        result["first_search_ms"] = times(index.search_encoded, 1)[0]
        for pool in (200, 1000):
            drop_from_memory(file)
            found = times(index.search_encoded, min(queries, 100), pool=pool)
            result[f"hds_ms_pool_{pool}_from_disk"] = percentiles(found)
    with HashIndex.open(path, read_only=True) as index:  # pages mapped so far are let go
        for pool in (200, 1000, 4000):
            read_into_memory(file)
            found = times(index.search_encoded, queries, pool=pool)
            result[f"hds_ms_pool_{pool}"] = percentiles(found)
        result["hds_ms_with_records"] = percentiles(times(index.search_hits, queries))
        result["bcs_ms"] = percentiles(times(index.search_encoded, queries, mode="bcs"))
        began = time.perf_counter()
        index.search_encoded(codes[:256], features[:256], SearchOptions(10))
        result["hds_batch_256_ms_per_query"] = 1000 * (time.perf_counter() - began) / 256
        read_into_memory(file)
        result["es_ms"] = times(index.search_encoded, 3, mode="es")
        began = time.perf_counter()
        index.search_encoded(codes[:256], features[:256], SearchOptions(10, mode="es"))
        result["es_batch_256_ms_per_query"] = 1000 * (time.perf_counter() - began) / 256
    return result


def measure_adding(folder: Path, n: int) -> dict[str, float]:
    """Ready codes with label and metadata, features of 0 and 64 values, into a new index."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    uris = [f"/photos/{i // 1000}/{i}.jpg" for i in range(n)]
    labels = [f"class {i % CLASSES}" for i in range(n)]
    metadata = [{"brand": f"brand {i % 50}", "price": i % 1000, "sold": i % 2} for i in range(n)]
    result = {}
    for width in (0, 64):
        features = None if width == 0 else np.ones((n, width), np.float32)
        path = folder / "adding.idx"
        shutil.rmtree(path, ignore_errors=True)
        with HashIndex.create(path, bits=128, feature_dim=width) as index:
            began = time.perf_counter()
            index.add_encoded(codes, features, uris, labels, metadata)
            result[f"add_per_s_features_{width}"] = n / (time.perf_counter() - began)
            if width == 0:
                for where in ({"label": "class 7"}, {"brand": "brand 3", "price": {"<": 100}}):
                    for when in ("first", "again"):
                        began = time.perf_counter()
                        index.search_encoded(
                            codes[:1], None, SearchOptions(10, mode="bcs", where=where)
                        )
                        took = 1000 * (time.perf_counter() - began)
                        result[f"bcs_ms_where_{'_'.join(where)}_{when}"] = took
                began = time.perf_counter()
                found = index.duplicates(2)
                result["duplicates_radius_2_s"] = time.perf_counter() - began
                result["duplicates_pairs"] = found.pairs
        shutil.rmtree(path)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the index is made and kept")
    parser.add_argument("--n", type=int, default=1_124_087)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--bits", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--add", type=int, default=1_000_000, help="images of the adding test")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = make_index(options.folder, options.n, options.width, options.bits)
    result: dict[str, Any] = {"n": options.n, "width": options.width, "bits": options.bits}
    result |= measure_opening(path)
    result |= measure_queries(path, options.width, options.bits, options.queries)
    result |= measure_adding(options.folder, options.add)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
