"""``hashlens bench shards``: measure search over shards, fit a model of its cost, plan with it.

docs/background/scale.md says what the model means and how far to trust it.
"""

from __future__ import annotations

import json
import math
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
from hashlens.distributed.cluster import connect
from hashlens.distributed.replicas import merge
from hashlens.distributed.sharded import ShardedIndex
from hashlens.files import replace_file
from hashlens.index.hash_index import HashIndex
from hashlens.machine import cores
from hashlens.report.plot import Curve, panels, plot_curves, save_figure
from hashlens.report.table import Table
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

# What is planned; nothing of it is measured.
SIZES = (10**8, 10**9, 10**10)
PLANNED_FEATURE_DIM = 512
REPLICAS = 2
_MESSAGE_ROUNDS = 3
_MESSAGE_BYTES = 1000
_MEMORY_USED = 0.8

Say = Callable[[str], None]


def run(
    folder: Path | None,
    size: int,
    check: int,
    say: Say,
    *,
    counts: Sequence[int] = COUNTS,
    ray: str | None = None,
) -> dict[str, Any]:
    """Measure below ``folder``, or a temporary one, on a Ray cluster; fit, check and plan."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run(Path(made), size, check, say, counts=counts, ray=ray)
    connect(ray)
    folder, own_cores = folder.absolute(), cores()
    fitted_on = measure(folder, counts, (size // 8, size), say)
    model = fit(fitted_on, own_cores)
    checked = measure(folder, counts[1:], (check,), say)
    record = record_bytes(folder / f"images-{size}" / "shard-0000")
    image_bytes = CODE_BYTES + 2 * PLANNED_FEATURE_DIM + record
    return {
        "cores": own_cores,
        "fitted_on": [_row(o) for o in fitted_on],
        "model": asdict(model),
        "checked_on": [{**_row(o), **_check(o, model, own_cores)} for o in checked],
        "merge": [{"shards": s, "ms": ms} for s, ms in merge_times((*counts, 32, 128)).items()],
        "record_bytes": record,
        "image_bytes": image_bytes,
        "machine": asdict(Machine()),
        "plans": plans(model, Machine(), image_bytes),
        "environment": environment(own_cores),
    }


def measure(
    folder: Path,
    counts: Sequence[int],
    sizes: Sequence[int],
    say: Say,
) -> list[Observation]:
    """Observations for every number of shards and every size of a shard."""
    found = []
    for size in sizes:
        parent = folder / f"images-{size}"
        parent.mkdir(parents=True, exist_ok=True)
        shards = make_shards(parent, max(counts), size)
        for one in observe(parent, shards, counts):
            found.append(one)
            say(
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
        for _ in range(_REPEATS):
            began = time.perf_counter()
            merge(parts, POOL)
            taken.append(time.perf_counter() - began)
        times[count] = 1e3 * float(np.median(taken))
    return times


def _row(seen: Observation) -> dict[str, Any]:
    return {**asdict(seen), "resident_mb": seen.resident / 1e6}


def _check(seen: Observation, model: CostModel, cores: int) -> dict[str, float]:
    coarse = model.coarse(seen.shards, seen.images_per_shard, cores)
    predicted = model.whole(seen.shards, seen.images_per_shard, cores)
    whole = seen.coarse + seen.fine + seen.records
    return {
        "whole": whole,
        "predicted_whole": predicted,
        "error": predicted / whole - 1,
        "predicted_coarse": coarse,
        "coarse_error": coarse / seen.coarse - 1,
        "predicted_resident_mb": model.resident(seen.images_per_shard) / 1e6,
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


@dataclass(frozen=True)
class Observation:
    """Medians over single queries to ``shards`` shards of ``images_per_shard`` images.

    Attributes
    ----------
    coarse, fine, records : float
        Milliseconds of the three stages.
    front_end : float
        Processor milliseconds of the asking process, all its threads.
    resident : float
        Bytes of memory of a shard's process, without files that are mapped, on average.
    """

    shards: int
    images_per_shard: int
    coarse: float
    fine: float
    records: float
    front_end: float
    resident: float


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


@dataclass(frozen=True)
class CostModel:
    """Constants of the model: milliseconds, bytes, and milliseconds of one core in ``scan``."""

    coarse_base: float
    coarse_shard: float
    scan: float
    fine_base: float
    fine_shard: float
    records_base: float
    records_shard: float
    front_base: float
    front_shard: float
    memory_base: float
    memory_image: float

    def coarse(self, shards: int, images_per_shard: float, cores: int) -> float:
        """Milliseconds of coarse search on one machine."""
        scanned = self.scan * images_per_shard * shards / cores
        return self.coarse_base + self.coarse_shard * shards + scanned

    def fine(self, shards: int) -> float:
        """Milliseconds of fine search on one machine."""
        return self.fine_base + self.fine_shard * shards_asked(shards, POOL)

    def records(self, shards: int) -> float:
        """Milliseconds to look up the results, on one machine."""
        return self.records_base + self.records_shard * shards_asked(shards, RESULTS)

    def whole(self, shards: int, images_per_shard: float, cores: int) -> float:
        """Milliseconds of a query on one machine."""
        coarse = self.coarse(shards, images_per_shard, cores)
        return coarse + self.fine(shards) + self.records(shards)

    def front_end(self, shards: int) -> float:
        """Processor milliseconds of the asking process."""
        return self.front_base + self.front_shard * shards

    def resident(self, images_per_shard: float) -> float:
        """Bytes of memory of a shard's process."""
        return self.memory_base + self.memory_image * images_per_shard


def shards_asked(shards: int, images: int) -> float:
    """Mean number of shards that hold some of these images, which may be in any shard."""
    return float(shards * (1 - (1 - 1 / shards) ** images))


def fit(observations: Sequence[Observation], cores: int) -> CostModel:
    """Least squares of relative errors, with constants of 0 or more."""
    seen = list(observations)
    scanned = [o.images_per_shard * o.shards / cores for o in seen]
    coarse = _constants([o.coarse for o in seen], [float(o.shards) for o in seen], scanned)
    fine = _constants([o.fine for o in seen], [shards_asked(o.shards, POOL) for o in seen])
    asked = [shards_asked(o.shards, RESULTS) for o in seen]
    records = _constants([o.records for o in seen], asked)
    front = _constants([o.front_end for o in seen], [float(o.shards) for o in seen])
    memory = _constants([o.resident for o in seen], [float(o.images_per_shard) for o in seen])
    return CostModel(*coarse, *fine, *records, *front, *memory)


def _constants(values: Sequence[float], *columns: Sequence[float]) -> list[float]:
    """A constant, and one factor per column."""
    from scipy.optimize import nnls

    # relative errors: a large size must not drown the small ones
    weights = 1 / np.array(values)
    table = np.column_stack([np.ones(len(values)), *columns]) * weights[:, None]
    scales = table.max(axis=0)  # image counts next to ones: the solver's tolerance is absolute
    constants, _ = nnls(table / scales, np.ones(len(values)))
    found: list[float] = (constants / scales).tolist()
    return found


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster. All are assumptions; none was measured or asked for anywhere.

    Attributes
    ----------
    cores : int
    memory_gb, disk_tb : float
        Disk: a local SSD that holds the features.
    memory_gb_per_second : float
        Bandwidth of memory.
    read_ms, reads_at_once : float, int
        A random read from the disk, and how many run at the same time.
    network_gbit, round_trip_ms : float
        Of the network between the machines.
    price : float
        Per month, in any currency.
    """

    cores: int = 16
    memory_gb: float = 128
    disk_tb: float = 4
    memory_gb_per_second: float = 200
    read_ms: float = 0.1
    reads_at_once: int = 32
    network_gbit: float = 10
    round_trip_ms: float = 0.2
    price: float = 500


@dataclass(frozen=True)
class Plan:
    """What a collection needs, with one shard per machine and replica."""

    images: int
    shards: int
    replicas: int
    memory_gb: float
    disk_tb: float
    ask_ms: float
    scan_ms: float
    network_ms: float
    reads_ms: float
    traffic_kb: float
    front_end_ms: float
    queries_per_second: float
    price: float

    @property
    def query_ms(self) -> float:
        """Milliseconds of a single query, from code and feature to records."""
        return self.ask_ms + self.scan_ms + self.network_ms + self.reads_ms


def plans(model: CostModel, machine: Machine, image_bytes: float) -> list[dict[str, Any]]:
    """For each size: the fewest machines that hold it, and the number that answers fastest."""
    rows = []
    for images in SIZES:
        fewest = fewest_shards(model, machine, images, image_bytes)
        aims = {"fewest": fewest, "quickest": max(fewest, quickest_shards(model, machine, images))}
        for aim, shards in aims.items():
            made = plan(
                model,
                machine,
                images,
                shards,
                image_bytes=image_bytes,
            )
            rows.append(
                {
                    **asdict(made),
                    "aim": aim,
                    "machines": made.shards * made.replicas,
                    "each": images / shards,
                    "query_ms": made.query_ms,
                }
            )
    return rows


def plan(
    model: CostModel,
    machine: Machine,
    images: int,
    shards: int,
    *,
    image_bytes: float,
) -> Plan:
    """Predict a cluster of ``shards`` times ``REPLICAS`` machines."""
    each = images / shards
    first = sum((model.coarse_base, model.fine_base, model.records_base))
    first += sum((model.coarse_shard, model.fine_shard, model.records_shard))
    scan = _scan_ms(model, machine, each)
    traffic = shards * _shard_bytes(PLANNED_FEATURE_DIM)
    reads = math.ceil(POOL / shards / machine.reads_at_once) * machine.read_ms
    reads_per_second = 1e3 * machine.reads_at_once / machine.read_ms
    return Plan(
        images=images,
        shards=shards,
        replicas=REPLICAS,
        memory_gb=model.resident(each) / 1e9,
        disk_tb=each * image_bytes / 1e12,
        ask_ms=first + model.front_shard * (shards - 1),
        scan_ms=scan,
        network_ms=_MESSAGE_ROUNDS * machine.round_trip_ms + _transfer_ms(machine, traffic),
        reads_ms=reads,
        traffic_kb=traffic / 1e3,
        front_end_ms=model.front_end(shards),
        queries_per_second=REPLICAS * min(1e3 / scan, reads_per_second * shards / POOL),
        price=REPLICAS * shards * machine.price,
    )


def fewest_shards(model: CostModel, machine: Machine, images: int, image_bytes: float) -> int:
    """The least number of machines whose memory and disks hold the images."""
    memory = machine.memory_gb * 1e9 * _MEMORY_USED - model.memory_base
    by_memory = images * model.memory_image / memory
    return max(1, math.ceil(by_memory), math.ceil(images * image_bytes / (machine.disk_tb * 1e12)))


def quickest_shards(model: CostModel, machine: Machine, images: int) -> int:
    """The number of machines at which one query takes the least time."""
    per_shard = model.front_shard + _transfer_ms(machine, _shard_bytes(0))
    return max(1, round(math.sqrt(_scan_ms(model, machine, images) / per_shard)))


def _scan_ms(model: CostModel, machine: Machine, images: float) -> float:
    by_memory = images * CODE_BYTES / (machine.memory_gb_per_second * 1e6)
    return max(model.scan * images / machine.cores, by_memory)


def _shard_bytes(feature_dim: int) -> int:
    """Bytes to and from a shard: its part of the pool, the pool and the feature, messages."""
    return POOL * (8 + 2) + POOL * 8 + 4 * feature_dim + 2 * _MESSAGE_ROUNDS * _MESSAGE_BYTES


def _transfer_ms(machine: Machine, size: float) -> float:
    return size * 8 / (machine.network_gbit * 1e6)


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write shards.md, shards.png and shards.json; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    figures = json.dumps({**results, "command": command}, indent=1)
    replace_file(out / "shards.json", figures + "\n")
    here, beyond = panels(2)
    _plot_here(here, results)
    _plot_beyond(beyond, results)
    save_figure(here.figure, out, "shards", svg=False)
    page = out / "shards.md"
    replace_file(page, f"{_header(results, command)}\n{text(results)}")
    return page


def text(results: dict[str, Any]) -> str:
    """Tables and constants, as Markdown."""
    parts = []
    for title, part, columns in _TABLES:
        parts += [f"## {title}", Table.of(results[part], columns).markdown()]
        if part == "checked_on":
            parts += ["## Constants", _constants_list(results)]
    machine = Machine(**results["machine"])
    parts.append(
        f"A machine: {machine.cores} cores, {machine.memory_gb:.0f} GB of memory read at "
        f"{machine.memory_gb_per_second:.0f} GB/s, {machine.disk_tb:.0f} TB of SSD with reads of "
        f"{machine.read_ms} ms, {machine.reads_at_once} at once, a network of "
        f"{machine.network_gbit:.0f} Gbit/s and {machine.round_trip_ms} ms there and back, "
        f"{machine.price:.0f} per month: assumed, not measured."
    )
    return "\n\n".join(parts) + "\n"


_MEASURED = (
    ("shards", "shards", "d"), ("images each", "images_per_shard", ",d"),
    ("coarse ms", "coarse", ".2f"), ("fine ms", "fine", ".2f"), ("records ms", "records", ".2f"),
    ("asking process, CPU ms", "front_end", ".2f"),
    ("memory of a shard, MB", "resident_mb", ",.0f"),
)  # fmt: skip
_CHECKED = (
    ("shards", "shards", "d"), ("images each", "images_per_shard", ",d"),
    ("query ms, measured", "whole", ".2f"), ("predicted", "predicted_whole", ".2f"),
    ("error", "error", "+.0%"), ("coarse ms, measured", "coarse", ".2f"),
    ("predicted", "predicted_coarse", ".2f"), ("error", "coarse_error", "+.0%"),
    ("memory MB, measured", "resident_mb", ",.0f"),
    ("predicted", "predicted_resident_mb", ",.0f"),
)  # fmt: skip
_MERGED = (("shards", "shards", "d"), ("merge ms", "ms", ".3f"))
_PLANS = (
    ("images", "images", ".0e"), ("plan", "aim", "s"), ("shards", "shards", "d"),
    ("machines", "machines", "d"), ("codes per shard", "each", ".1e"),
    ("memory GB", "memory_gb", ".0f"), ("disk TB", "disk_tb", ".2f"),
    ("query ms", "query_ms", ".1f"), ("scan ms", "scan_ms", ".1f"), ("asking ms", "ask_ms", ".1f"),
    ("network ms", "network_ms", ".1f"), ("reads ms", "reads_ms", ".1f"),
    ("kB per query", "traffic_kb", ",.0f"), ("queries per second", "queries_per_second", ",.0f"),
    ("CPU ms at the front end", "front_end_ms", ".1f"), ("price per month", "price", ",.0f"),
)  # fmt: skip
_TABLES = (
    ("Measured", "fitted_on", _MEASURED),
    ("Predicted, then measured", "checked_on", _CHECKED),
    ("The merge alone", "merge", _MERGED),
    ("Plans", "plans", _PLANS),
)


def _constants_list(results: dict[str, Any]) -> str:
    m, cores = CostModel(**results["model"]), results["cores"]
    return f"""With S shards of n images each, A(S, m) of them asked for m images:

- coarse = {m.coarse_base:.2f} + {m.coarse_shard:.2f} S + {1e6 * m.scan:.3f} n S / {cores} ms, n in
  millions;
- fine = {m.fine_base:.2f} + {m.fine_shard:.2f} A(S, 200) ms;
- records = {m.records_base:.2f} + {m.records_shard:.2f} A(S, 10) ms;
- processor time of the asking process = {m.front_base:.2f} + {m.front_shard:.2f} S ms;
- memory of a shard's process = {m.memory_base / 1e6:.0f} + {m.memory_image:.1f} n MB, n in
  millions;
- an image on disk: {CODE_BYTES} bytes of code, its feature, and
  {results["record_bytes"]:.0f} bytes of id and record.
"""


def _header(results: dict[str, Any], command: str) -> str:
    return f"""# Search over shards

Made by `{command}`; the figures are in [shards.json](shards.json). What the model means and how far
to trust it: [scale](../background/scale.md).

- {machine_line(results["environment"])} All shards share it with the asking process.
- Random codes of 64 bits and 64-d features, seed 0; `hds` with a pool of {POOL} and k = {RESULTS},
  one query at a time, 10 ms apart, the numbers of shards taking turns; medians of {_REPEATS}
  queries after {_WARM_UP} that are not counted.

![Milliseconds per query by shards, measured here and predicted beyond](shards.png)
"""


def _plot_here(axes: Any, results: dict[str, Any]) -> None:
    """Milliseconds per query on this machine, measured and predicted."""
    model = CostModel(**results["model"])
    seen = [*results["fitted_on"], *results["checked_on"]]
    counts = sorted({o["shards"] for o in seen})
    curves = {}
    for size in sorted({o["images_per_shard"] for o in seen}):
        own = [o for o in seen if o["images_per_shard"] == size]
        name = f"{size:,} images each" + (" (not fitted)" if "whole" in own[0] else "")
        times = [o["coarse"] + o["fine"] + o["records"] for o in own]
        curves[name] = Curve([o["shards"] for o in own], times, "points")
        predicted = [model.whole(count, size, results["cores"]) for count in counts]
        curves[f"{name}: model"] = Curve(counts, predicted, "model", like=name)
    title = f"All shards on one machine of {results['cores']} cores; lines: model"
    plot_curves(curves, axes=axes, xlabel="shards", ylabel="ms per query", title=title)
    axes.set(ylim=(0, None), xticks=counts)


def _plot_beyond(axes: Any, results: dict[str, Any]) -> None:
    """Predicted milliseconds per query on many machines."""
    model, machine = CostModel(**results["model"]), Machine(**results["machine"])
    curves = {}
    for images in dict.fromkeys(p["images"] for p in results["plans"]):
        least = min(p["shards"] for p in results["plans"] if p["images"] == images)
        counts = [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if s >= least]
        plans = [
            plan(model, machine, images, s, image_bytes=results["image_bytes"]) for s in counts
        ]
        name = f"$10^{{{len(str(images)) - 1}}}$ images"
        curves[name] = Curve(counts, [made.query_ms for made in plans])
    plot_curves(
        curves,
        axes=axes,
        xlabel="machines that hold the images once",
        ylabel="ms per query, predicted",
        xscale="log",
        yscale="log",
        title=f"One shard per machine of {machine.cores} cores",
    )
