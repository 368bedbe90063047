"""``hashlens bench shards``: measure search over shards on this machine.

``benchmarks/scale_model.py`` reads the figures and predicts what larger collections need.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.bench.timing import environment, machine_line
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, write_catalogue
from hashlens.distributed.cluster import connect, merge
from hashlens.distributed.sharded import ShardedIndex
from hashlens.files import replace_file
from hashlens.index.hash_index import HashIndex
from hashlens.machine import cores
from hashlens.report.page import Table
from hashlens.report.plot import Curve, plot_curves, save_figure
from hashlens.types import Codes, Features, SearchOptions, SearchResult, SearchTrace

COUNTS = (1, 2, 4, 8)
CODE_BYTES = 8
FEATURE_DIM = 64
POOL = 200
RESULTS = 10
_REPEATS = 100
_WARM_UP = 10
_BLOCK = 1 << 17
_PAUSE_SECONDS = 0.01

Say = Callable[[str], None]


@dataclass(frozen=True)
class Observation:
    """Medians over single queries to ``shards`` shards of ``images_per_shard`` images.

    The stages are in milliseconds; ``front_end`` is processor time of the asking process, all its
    threads; ``resident_mb`` the memory of a shard's process without mapped files, on average.
    """

    shards: int
    images_per_shard: int
    coarse: float
    fine: float
    records: float
    front_end: float
    resident_mb: float

    @property
    def whole(self) -> float:
        """Milliseconds of a query."""
        return self.coarse + self.fine + self.records


def run(
    folder: Path | None,
    size: int,
    check: int,
    say: Say,
    *,
    counts: Sequence[int] = COUNTS,
    ray: str | None = None,
) -> dict[str, Any]:
    """Measure below ``folder``, or a temporary one, on a Ray cluster."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run(Path(made), size, check, say, counts=counts, ray=ray)
    connect(ray)
    seen = []
    for images, measured in ((size // 8, counts), (size, counts), (check, counts[1:])):
        parent = folder.absolute() / f"images-{images}"
        parent.mkdir(parents=True, exist_ok=True)
        for one in observe(parent, make_shards(parent, max(measured), images), measured):
            seen.append(one)
            say(
                f"{one.shards} shards of {images:,}: coarse {one.coarse:.2f} ms, fine "
                f"{one.fine:.2f} ms, records {one.records:.2f} ms"
            )
    return {
        "measured": [asdict(one) for one in seen],
        "merge": [{"shards": s, "ms": ms} for s, ms in merge_times((*counts, 32, 128)).items()],
        "record_bytes": record_bytes(folder / f"images-{size}" / "shard-0000"),
        "environment": environment(cores()),
    }


def make_shards(folder: Path, shards: int, images_per_shard: int, *, seed: int = 0) -> list[Shard]:
    """Shards of random codes and features below ``folder``, made once."""
    made = []
    for position in range(shards):
        name = f"shard-{position:04d}"
        path = folder / name
        if not path.exists():
            rng = np.random.default_rng((seed, position))
            with HashIndex.create(path, bits=8 * CODE_BYTES, feature_dim=FEATURE_DIM) as index:
                for start in range(0, images_per_shard, _BLOCK):
                    n = min(_BLOCK, images_per_shard - start)
                    codes = rng.integers(0, 256, (n, CODE_BYTES), dtype=np.uint8)
                    features = rng.standard_normal((n, FEATURE_DIM), dtype=np.float32)
                    uris = [f"s3://bucket/{position:04d}/{start + i:012d}.jpg" for i in range(n)]
                    index.add_encoded(codes, features, uris)
        start = position * images_per_shard
        made.append(Shard(name, (IdRange(start, 0, images_per_shard),)))
    return made


def record_bytes(shard: Path) -> float:
    """Bytes on disk of an image besides its code and feature: the id and the record."""
    with HashIndex.open(shard, read_only=True) as index:
        return index.info().bytes_on_disk / len(index) - CODE_BYTES - 2 * FEATURE_DIM


def observe(
    folder: Path, shards: Sequence[Shard], counts: Sequence[int], *, seed: int = 1
) -> list[Observation]:
    """Time single queries to the first so many shards of one folder, all counts taking turns."""
    rng = np.random.default_rng(seed)
    stages: dict[int, list[tuple[float, ...]]] = {count: [] for count in counts}
    with ExitStack() as stack:
        opened = {count: stack.enter_context(_open(folder, shards[:count])) for count in counts}
        for _ in range(_WARM_UP + _REPEATS):
            for count, index in opened.items():
                code = rng.integers(0, 256, (1, CODE_BYTES), dtype=np.uint8)
                feature = rng.standard_normal((1, FEATURE_DIM), dtype=np.float32)
                stages[count].append(_stages(index, code, feature))
                time.sleep(_PAUSE_SECONDS)
        resident = {count: float(np.mean(index.own_memory())) for count, index in opened.items()}
    found = []
    for count, seconds in stages.items():
        coarse, fine, records, front_end = (1e3 * np.median(seconds[_WARM_UP:], axis=0)).tolist()
        found.append(
            Observation(
                count, shards[0].count, coarse, fine, records, front_end, resident[count] / 1e6
            )
        )
    return found


def _open(folder: Path, shards: Sequence[Shard]) -> ShardedIndex:
    catalogue = folder / f"first-{len(shards)}"
    catalogue.mkdir(exist_ok=True)
    shown = tuple(replace(shard, folder=f"../{shard.folder}") for shard in shards)
    write_catalogue(catalogue, Catalogue(8 * CODE_BYTES, FEATURE_DIM, "", None, shown))
    return ShardedIndex.open(catalogue, deadline=120.0)


def _stages(index: ShardedIndex, code: Codes, feature: Features) -> tuple[float, ...]:
    """Seconds of a query's stages, and processor seconds of this process."""
    trace = SearchTrace()
    began, busy = time.perf_counter(), time.process_time()
    index.search_hits(code, feature, SearchOptions(RESULTS, pool=POOL), trace=trace)
    busy, whole = time.process_time() - busy, time.perf_counter() - began
    return trace.coarse, trace.fine, whole - trace.coarse - trace.fine, busy


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
        for _ in range(_REPEATS):
            began = time.perf_counter()
            merge(parts, POOL)
            taken.append(time.perf_counter() - began)
        times[count] = 1e3 * float(np.median(taken))
    return times


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write shards.md, shards.png and shards.json; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "shards.json", json.dumps({**results, "command": command}, indent=1) + "\n")
    curves = {}
    seen = [Observation(**row) for row in results["measured"]]
    for size in sorted({one.images_per_shard for one in seen}):
        own = [one for one in seen if one.images_per_shard == size]
        curves[f"{size:,} images each"] = Curve([o.shards for o in own], [o.whole for o in own])
    title = f"All shards on one machine of {results['environment']['cores']} cores"
    figure = plot_curves(curves, xlabel="shards", ylabel="ms per query", title=title)
    figure.axes[0].set(ylim=(0, None), xticks=sorted({one.shards for one in seen}))
    save_figure(figure, out, "shards", svg=False)
    page = out / "shards.md"
    replace_file(page, f"{_header(results, command)}\n{text(results)}")
    return page


def text(results: dict[str, Any]) -> str:
    """Tables, as Markdown."""
    rows = [{**row, "whole": Observation(**row).whole} for row in results["measured"]]
    return f"""## Measured

{Table.of(rows, _MEASURED).markdown()}

An image takes {CODE_BYTES} bytes of code on disk, its feature, and {results["record_bytes"]:.0f}
bytes of id and record.

## The merge alone

{Table.of(results["merge"], (("shards", "shards", "d"), ("merge ms", "ms", ".3f"))).markdown()}
"""


_MEASURED = (
    ("shards", "shards", "d"), ("images each", "images_per_shard", ",d"),
    ("query ms", "whole", ".2f"), ("coarse ms", "coarse", ".2f"), ("fine ms", "fine", ".2f"),
    ("records ms", "records", ".2f"), ("asking process, CPU ms", "front_end", ".2f"),
    ("memory of a shard, MB", "resident_mb", ",.0f"),
)  # fmt: skip


def _header(results: dict[str, Any], command: str) -> str:
    return f"""# Search over shards

Made by `{command}`; the figures are in [shards.json](shards.json). What follows from them for
larger collections: [scale](../background/scale.md).

- {machine_line(results["environment"])} All shards share it with the asking process.
- Random codes of 64 bits and 64-d features, seed 0; `hds` with a pool of {POOL} and k = {RESULTS},
  one query at a time, 10 ms apart, the numbers of shards taking turns; medians of {_REPEATS}
  queries after {_WARM_UP} that are not counted.

![Milliseconds per query by shards](shards.png)
"""
