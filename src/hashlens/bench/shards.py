"""``hashlens bench shards``: what shards cost a search, in one process and on Ray Serve."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.bench.timing import environment, write_page
from hashlens.distributed.cluster import connect
from hashlens.distributed.serving import ServedShard, ServedShards
from hashlens.distributed.sharded import ShardedIndex
from hashlens.distributed.snapshots import creating
from hashlens.index.hash_index import HashIndex
from hashlens.index.layout import Meta
from hashlens.machine import cores
from hashlens.report.page import Table
from hashlens.types import SearchOptions

COUNTS = (1, 2, 4, 8)
CODE_BYTES, FEATURE_DIM = 8, 64
POOL, RESULTS = 200, 10
_REPEATS, _WARM_UP = 100, 10
_BLOCK = 1 << 17


def run(folder: Path | None, images: int, *, counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Measure single queries over the same images in so many shards, all counts taking turns."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run(Path(made), images, counts=counts)
    ray: Any = connect("local")
    from ray import serve

    shut_down: Any = serve.shutdown
    serve.start(proxy_location="Disabled")
    with ExitStack() as stack:
        one = stack.enter_context(HashIndex.open(_one_index(folder / "one", images)))
        searched: dict[str, Any] = {"one index": one}
        for count in counts:
            place = _in_shards(folder / f"shards-{count}", images, count)
            searched[f"{count} shards, one process"] = ShardedIndex.open(place)
            searched[f"{count} shards, Ray Serve"] = _served(place, count)
        rows = _times(searched)
    shut_down()
    ray.shutdown()
    return {"images": images, "measured": rows, "environment": environment(cores())}


def _blocks(images: int) -> Any:
    """Random codes, features and names of images."""
    rng = np.random.default_rng(0)
    for start in range(0, images, _BLOCK):
        n = min(_BLOCK, images - start)
        codes = rng.integers(0, 256, (n, CODE_BYTES), dtype=np.uint8)
        features = rng.standard_normal((n, FEATURE_DIM), dtype=np.float32)
        yield codes, features, [f"s3://bucket/{start + i:012d}.jpg" for i in range(n)]


def _one_index(folder: Path, images: int) -> Path:
    if not folder.exists():
        with HashIndex.create(folder, bits=8 * CODE_BYTES, feature_dim=FEATURE_DIM) as index:
            for block in _blocks(images):
                index.add_encoded(*block)
    return folder


def _in_shards(folder: Path, images: int, shards: int) -> Path:
    """The same images, spread over shards."""
    if not folder.exists():
        meta = Meta(8 * CODE_BYTES, FEATURE_DIM, "float16", "", "")
        with creating(folder, meta, shards) as made:
            for block in _blocks(images):
                for position, shard in enumerate(made):
                    shard.add_encoded(*(values[position::shards] for values in block))
    return folder


def _served(folder: Path, shards: int) -> ShardedIndex:
    """The shards as deployments of Ray Serve, asked by their handles."""
    from ray import serve

    deployment: Any = serve.deployment
    handles = [
        serve.run(
            deployment(ServedShard, ray_actor_options={"num_cpus": 0}).bind(str(folder), shard),
            name=f"{folder.name}-{shard}",
            route_prefix=None,
        )
        for shard in range(shards)
    ]
    return ShardedIndex(folder, shards=ServedShards(handles, 60.0))


def _times(searched: dict[str, Any]) -> list[dict[str, Any]]:
    """Milliseconds of a query, and processor milliseconds of this process, for each index."""
    rng = np.random.default_rng(1)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in searched}
    options = SearchOptions(RESULTS, pool=POOL)
    for _ in range(_WARM_UP + _REPEATS):
        code = rng.integers(0, 256, (1, CODE_BYTES), dtype=np.uint8)
        feature = rng.standard_normal((1, FEATURE_DIM), dtype=np.float32)
        for name, index in searched.items():
            began, busy = time.perf_counter(), time.process_time()
            index.search_hits(code, feature, options)
            seconds[name].append((time.perf_counter() - began, time.process_time() - busy))
    rows = []
    for name, taken in seconds.items():
        wall, busy = np.array(taken[_WARM_UP:]).T * 1e3
        rows.append(
            {"name": name, "least": wall.min(), "median": np.median(wall), "cpu": np.median(busy)}
        )
    return rows


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write shards.md and shards.json; return the page's path."""
    notes = f"""- {results["images"]:,} random codes of 64 bits with 64-d features, seed 0; `hds`
  with a pool of {POOL} and k = {RESULTS}, records included; single queries, all rows taking turns,
  {_REPEATS} after {_WARM_UP} that are not counted. All shards of Ray Serve share the machine
  with the asking process."""
    title = "Search over shards"
    return write_page(out, "shards", title, results, command, notes, text(results))


def text(results: dict[str, Any]) -> str:
    """The table, as Markdown."""
    columns = (
        ("", "name", "s"), ("ms per query, least", "least", ".2f"), ("median", "median", ".2f"),
        ("asking process, CPU ms", "cpu", ".2f"),
    )  # fmt: skip
    return Table.of(results["measured"], columns).markdown()
