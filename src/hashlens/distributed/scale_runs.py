"""The measurements behind the model of :mod:`hashlens.distributed.scale`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, write_catalogue
from hashlens.distributed.merge import merge
from hashlens.distributed.scale import POOL, RESULTS, Observation
from hashlens.distributed.sharded import ShardedIndex
from hashlens.index.arrays import SearchTrace
from hashlens.index.index import HashIndex
from hashlens.protocols import Codes, Features, SearchResult

BITS = 64
FEATURE_DIM = 64
_ROUNDS = 100
_WARM_UP = 10
_BLOCK = 1 << 17
_PAUSE_SECONDS = 0.01


def make_shards(folder: Path, shards: int, images_per_shard: int, *, seed: int = 0) -> list[Shard]:
    """Shards of random codes and features below ``folder``, made once."""
    made = []
    for position in range(shards):
        name = f"shard-{position:04d}"
        path = folder / name
        if not path.exists():
            rng = np.random.default_rng((seed, position))
            with HashIndex.create(path, bits=BITS, feature_dim=FEATURE_DIM) as index:
                for start in range(0, images_per_shard, _BLOCK):
                    n = min(_BLOCK, images_per_shard - start)
                    codes = rng.integers(0, 256, (n, code_bytes(BITS)), dtype=np.uint8)
                    features = rng.standard_normal((n, FEATURE_DIM), dtype=np.float32)
                    uris = [f"s3://bucket/{position:04d}/{start + i:012d}.jpg" for i in range(n)]
                    index.add_encoded(codes, features, uris)
        start = position * images_per_shard
        made.append(Shard(name, (IdRange(start, 0, images_per_shard),)))
    return made


def record_bytes(shard: Path) -> float:
    """Bytes on disk of an image besides its code and feature: the id and the record."""
    with HashIndex.open(shard, read_only=True) as index:
        return index.info().bytes_on_disk / len(index) - code_bytes(BITS) - 2 * FEATURE_DIM


def observe(
    folder: Path, shards: Sequence[Shard], counts: Sequence[int], *, seed: int = 1
) -> list[Observation]:
    """Time single queries to the first so many shards of one folder, all counts taking turns."""
    rng = np.random.default_rng(seed)
    stages: dict[int, list[tuple[float, ...]]] = {count: [] for count in counts}
    with ExitStack() as stack:
        opened = {count: stack.enter_context(_open(folder, shards[:count])) for count in counts}
        for _ in range(_WARM_UP + _ROUNDS):
            for count, index in opened.items():
                code = rng.integers(0, 256, (1, code_bytes(BITS)), dtype=np.uint8)
                feature = rng.standard_normal((1, FEATURE_DIM), dtype=np.float32)
                stages[count].append(_stages(index, code, feature))
                time.sleep(_PAUSE_SECONDS)
        resident = {count: float(np.mean(index.own_memory())) for count, index in opened.items()}
    found = []
    for count, seconds in stages.items():
        coarse, fine, records, front_end = 1e3 * np.median(seconds[_WARM_UP:], axis=0)
        found.append(
            Observation(
                shards=count,
                images_per_shard=shards[0].count,
                coarse=float(coarse),
                fine=float(fine),
                records=float(records),
                front_end=float(front_end),
                resident=resident[count],
            )
        )
    return found


def _open(folder: Path, shards: Sequence[Shard]) -> ShardedIndex:
    catalogue = folder / f"first-{len(shards)}"
    catalogue.mkdir(exist_ok=True)
    beside = tuple(replace(shard, folder=f"../{shard.folder}") for shard in shards)
    write_catalogue(catalogue, Catalogue(BITS, FEATURE_DIM, "", None, beside))
    return ShardedIndex.open(catalogue, deadline=120.0)


def _stages(index: ShardedIndex, code: Codes, feature: Features) -> tuple[float, ...]:
    """Seconds of a query's stages, and processor seconds of this process."""
    trace = SearchTrace()
    began, busy = time.perf_counter(), time.process_time()
    index.search_hits(code, feature, RESULTS, pool=POOL, trace=trace)
    busy, whole = time.process_time() - busy, time.perf_counter() - began
    return trace.coarse, trace.fine, whole - trace.coarse - trace.fine, busy


def measure(
    folder: Path,
    counts: Sequence[int],
    sizes: Sequence[int],
    report: Callable[[str], None],
) -> list[Observation]:
    """Observations for every number of shards and every size of a shard."""
    found = []
    for size in sizes:
        parent = folder / f"images-{size}"
        parent.mkdir(parents=True, exist_ok=True)
        shards = make_shards(parent, max(counts), size)
        for one in observe(parent, shards, counts):
            found.append(one)
            report(
                f"{one.shards} shards of {size:,}: coarse {one.coarse:.2f} ms, fine "
                f"{one.fine:.2f} ms, records {one.records:.2f} ms"
            )
    return found


def merge_times(counts: Sequence[int], *, seed: int = 0) -> dict[int, float]:
    """Milliseconds of merging the pools of so many shards, without any message."""
    rng = np.random.default_rng(seed)
    times = {}
    for count in counts:
        parts = [
            SearchResult(
                rng.integers(0, 2**40, (1, POOL)),
                np.sort(rng.integers(8, 20, (1, POOL), np.uint16)),
            )
            for _ in range(count)
        ]
        taken = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            merge(parts, POOL)
            taken.append(time.perf_counter() - began)
        times[count] = 1e3 * float(np.median(taken))
    return times
