"""What an index adds to the search inside it, as ratios measured in one run.

    python benchmarks/search_path.py [--images N] [--bits B] [--features F] [--json]

An index of N random clustered codes with labels, file names and metadata is made in a temporary
folder. Then are timed, minimum and median of many rounds that take turns: ``hamming_topk`` on
prepared codes, ``HashIndex.search_encoded`` and ``search_hits`` by codes, the same after 1 % of
the images are removed, the first search after one image was added, the one that follows, and one
after a pause as long as an addition, which finds the processor as cold. Queries change from call
to call. Then 100 searches a second are made, with and without one image added a
second, taking turns. Exhaustive Euclidean search is timed next to NumPy with norms kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import HashIndex, SearchOptions, hamming_topk
from hashlens.bench.search import clustered_codes
from hashlens.bench.timing import environment, machine_line
from hashlens.codes.database import CodeDatabase
from hashlens.codes.threads import thread_count

QUERIES, ADDS = 64, 20
SEARCHES_A_SECOND, STREAM_TURNS, STREAM_SECONDS = 100, 4, 10


def rounds(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call; the calls take turns, after three that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(3):
        for call in calls.values():
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return times


def fill(index: HashIndex, codes: Any, features: Any) -> None:
    """Add codes with names, labels and metadata."""
    for at in range(0, len(codes), 100_000):
        part = codes[at : at + 100_000]
        names = [f"/photos/{i:08}.jpg" for i in range(at, at + len(part))]
        index.add_encoded(
            part,
            features[at : at + len(part)],
            names,
            labels=[str(i % 100) for i in range(len(part))],
            metadata=[{"shop": i % 7, "brand": "x"} for i in range(len(part))],
        )


def measure_codes(folder: Path, n: int, bits: int, seconds: float) -> dict[str, list[float]]:
    """Searches by codes."""
    codes = clustered_codes(n, bits, 0)
    queries = cycle(np.split(clustered_codes(QUERIES, bits, 0, stream=1), QUERIES))
    index = HashIndex.create(folder / "codes.idx", bits=bits, feature_dim=0)
    fill(index, codes, np.zeros((n, 0), np.float32))
    database = CodeDatabase(codes)
    database.organise()
    few, many = SearchOptions(10, mode="bcs"), SearchOptions(1000, mode="bcs")
    calls: dict[str, Callable[[], Any]] = {
        "hamming_topk, k = 10": lambda: hamming_topk(database, next(queries), 10),
        "search_encoded, k = 10": lambda: index.search_encoded(next(queries), None, few),
        "search_hits, k = 10": lambda: index.search_hits(next(queries), None, few),
        "hamming_topk, k = 1000": lambda: hamming_topk(database, next(queries), 1000),
        "search_hits, k = 1000": lambda: index.search_hits(next(queries), None, many),
    }
    for _ in range(2 * 2048 + 1):  # enough for the index to organise its codes
        calls["search_encoded, k = 10"]()
    time.sleep(3)
    times: dict[str, list[float]] = {}
    for ending in ("k = 10", "k = 1000"):  # apart: many hits push the codes out of the caches
        own = {name: call for name, call in calls.items() if name.endswith(ending)}
        times |= rounds(own, seconds)
    times |= measure_adds(index, queries, few, "")
    times |= measure_stream(index, queries, few)
    index.remove(np.arange(0, n, 100))
    index.search_encoded(next(queries), None, few)
    after = ("hamming_topk, k = 10", "search_encoded, k = 10")
    removed = rounds({name: calls[name] for name in after}, seconds)
    times |= {f"{name}, 1 % removed": value for name, value in removed.items()}
    times |= measure_adds(index, queries, few, ", 1 % removed")
    index.close()
    return times


def measure_adds(
    index: HashIndex, queries: Any, options: SearchOptions, where: str
) -> dict[str, list[float]]:
    """Adding one image, the first search after it, and the next one."""
    times: dict[str, list[float]] = {}
    for i in range(ADDS):
        calls: dict[str, Callable[[], Any]] = {
            "adding one image": lambda i=i: index.add_encoded(
                next(queries), np.zeros((1, 0), np.float32), [f"/new/{i}.jpg"]
            ),
            "first search after adding": lambda: index.search_encoded(next(queries), None, options),
            "second search after adding": lambda: index.search_encoded(
                next(queries), None, options
            ),
        }
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times.setdefault(name + where, []).append(time.perf_counter() - begin)
        index.search_encoded(next(queries), None, options)
        time.sleep(min(times["adding one image" + where]))
        begin = time.perf_counter()
        index.search_encoded(next(queries), None, options)
        taken = time.perf_counter() - begin
        times.setdefault("search after a pause" + where, []).append(taken)
    return times


def measure_stream(
    index: HashIndex, queries: Any, options: SearchOptions
) -> dict[str, list[float]]:
    """Searches at a steady rate, with one image added a second by another thread, and without."""
    times: dict[str, list[float]] = {}
    for turn in range(STREAM_TURNS):
        adding = turn % 2 == 1
        done = threading.Event()

        def add(turn: int = turn, done: threading.Event = done) -> None:
            count = 0
            while not done.wait(1):
                name = f"/stream/{turn}-{count}.jpg"
                index.add_encoded(next(queries), np.zeros((1, 0), np.float32), [name])
                count += 1

        thread = threading.Thread(target=add)
        if adding:
            thread.start()
        begin = time.perf_counter()
        own = times.setdefault(f"steady searches{', one add a second' * adding}", [])
        for i in range(SEARCHES_A_SECOND * STREAM_SECONDS):
            due = begin + i / SEARCHES_A_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            index.search_encoded(next(queries), None, options)
            own.append(time.perf_counter() - asked)
        done.set()
        if adding:
            thread.join()
    return times


def measure_features(folder: Path, n: int, seconds: float) -> dict[str, list[float]]:
    """Exhaustive Euclidean search of one query and of 32, 256 features an image."""
    rng = np.random.default_rng(0)
    features = rng.random((n, 256), dtype=np.float32)
    asked = rng.random((32, 256), dtype=np.float32)
    norms = np.einsum("ij,ij->i", features, features)
    codes = rng.integers(0, 256, (n, 8), dtype=np.uint8)
    options = SearchOptions(10, mode="es")

    def plain(q: int) -> Any:
        near = norms[:, None] - 2 * (features @ asked[:q].T)
        return np.argpartition(near, 10, axis=0)[:10]

    calls: dict[str, Callable[[], Any]] = {}
    for q in (1, 32):
        calls[f"NumPy with norms kept, {q} queries"] = lambda q=q: plain(q)
    for kind in ("float32", "float16"):
        path = folder / f"{kind}.idx"
        index = HashIndex.create(path, bits=64, feature_dim=256, features=kind)
        fill(index, codes, features)
        for q in (1, 32):
            calls[f"ES of {kind}, {q} queries"] = lambda q=q, index=index: index.search_encoded(
                codes[:q], asked[:q], options
            )
    return rounds(calls, seconds)


RATIOS = (
    ("search_encoded, k = 10", "hamming_topk, k = 10"),
    ("search_hits, k = 10", "hamming_topk, k = 10"),
    ("search_hits, k = 1000", "hamming_topk, k = 1000"),
    ("search_encoded, k = 10, 1 % removed", "search_encoded, k = 10"),
    ("first search after adding", "search_encoded, k = 10"),
    ("second search after adding", "search_encoded, k = 10"),
    ("search after a pause", "search_encoded, k = 10"),
    ("first search after adding", "search after a pause"),
    ("first search after adding, 1 % removed", "search_encoded, k = 10, 1 % removed"),
    ("ES of float32, 1 queries", "NumPy with norms kept, 1 queries"),
    ("ES of float16, 1 queries", "NumPy with norms kept, 1 queries"),
    ("ES of float32, 32 queries", "NumPy with norms kept, 32 queries"),
    ("ES of float16, 32 queries", "NumPy with norms kept, 32 queries"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_124_087)
    parser.add_argument("--features", type=int, default=200_000, help="0: no Euclidean search")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each set of rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            times |= measure_codes(Path(folder), options.images, options.bits, options.seconds)
        if options.features:
            times |= measure_features(Path(folder), options.features, options.seconds)
    found = {
        name: {
            "minimum_us": min(own) * 1e6,
            "median_us": float(np.median(own)) * 1e6,
            "p99_us": float(np.percentile(own, 99)) * 1e6,
        }
        for name, own in times.items()
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{machine_line(environment(thread_count()))} {options.images:,} codes of "
        f"{options.bits} bits"
    )
    print("\n| | minimum, us | median, us | 99th percentile, us |\n|---|---|---|---|")
    for name, row in found.items():
        print("|".join(["", f" {name} ", *(f" {value:,.1f} " for value in row.values()), ""]))
    print("\n| ratio of | minima | medians |\n|---|---|---|")
    for above, below in RATIOS:
        if above in found and below in found:
            least, middle = (
                found[above][which] / found[below][which] for which in ("minimum_us", "median_us")
            )
            print(f"| {above} / {below} | {least:.2f} | {middle:.2f} |")


if __name__ == "__main__":
    main()
