"""What shards cost for larger collections: a model fitted on ``hashlens bench shards``.

docs/background/scale.md says what the model means and how far to trust it.

Run: python benchmarks/scale_model.py docs/results/shards.json --plot docs/results/scale.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from hashlens.bench.shards import CODE_BYTES, POOL, RESULTS, Observation
from hashlens.report.page import Table
from hashlens.report.plot import Curve, panels, plot_curves, save_figure

# What is planned; nothing of it is measured.
SIZES = (10**8, 10**9, 10**10)
FEATURE_DIM = 512
REPLICAS = 2
MESSAGE_ROUNDS = 3
MESSAGE_BYTES = 1000
MEMORY_USED = 0.8


@dataclass(frozen=True)
class CostModel:
    """Constants of the model: milliseconds, MB, and milliseconds of one core in ``scan``."""

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

    def resident_mb(self, images_per_shard: float) -> float:
        """Memory of a shard's process."""
        return self.memory_base + self.memory_image * images_per_shard


def shards_asked(shards: int, images: int) -> float:
    """Mean number of shards that hold some of these images, which may be in any shard."""
    return float(shards * (1 - (1 - 1 / shards) ** images))


def fit(seen: Sequence[Observation], cores: int) -> CostModel:
    """Least squares of relative errors, with constants of 0 or more."""
    shards = [o.shards for o in seen]
    images = [o.images_per_shard for o in seen]
    scanned = [o.images_per_shard * o.shards / cores for o in seen]
    pools = [shards_asked(count, POOL) for count in shards]
    results = [shards_asked(count, RESULTS) for count in shards]
    return CostModel(
        *_constants([o.coarse for o in seen], shards, scanned),
        *_constants([o.fine for o in seen], pools),
        *_constants([o.records for o in seen], results),
        *_constants([o.front_end for o in seen], shards),
        *_constants([o.resident_mb for o in seen], images),
    )


def _constants(values: Sequence[float], *columns: Sequence[float]) -> list[float]:
    """A constant, and one factor per column."""
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

    Disk is a local SSD that holds the features; ``reads_at_once`` random reads of ``read_ms`` run
    at the same time. ``price`` is per month, in any currency.
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
    machines: int
    each: float
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


def plan(
    model: CostModel, machine: Machine, images: int, shards: int, *, image_bytes: float
) -> Plan:
    """Predict a cluster of ``shards`` times ``REPLICAS`` machines."""
    each = images / shards
    first = sum((model.coarse_base, model.fine_base, model.records_base))
    first += sum((model.coarse_shard, model.fine_shard, model.records_shard))
    scan = _scan_ms(model, machine, each)
    traffic = shards * _shard_bytes(FEATURE_DIM)
    reads_per_second = 1e3 * machine.reads_at_once / machine.read_ms
    return Plan(
        images=images,
        shards=shards,
        machines=REPLICAS * shards,
        each=each,
        memory_gb=model.resident_mb(each) / 1e3,
        disk_tb=each * image_bytes / 1e12,
        ask_ms=first + model.front_shard * (shards - 1),
        scan_ms=scan,
        network_ms=MESSAGE_ROUNDS * machine.round_trip_ms + _transfer_ms(machine, traffic),
        reads_ms=math.ceil(POOL / shards / machine.reads_at_once) * machine.read_ms,
        traffic_kb=traffic / 1e3,
        front_end_ms=model.front_end(shards),
        queries_per_second=REPLICAS * min(1e3 / scan, reads_per_second * shards / POOL),
        price=REPLICAS * shards * machine.price,
    )


def fewest_shards(model: CostModel, machine: Machine, images: int, image_bytes: float) -> int:
    """The least number of machines whose memory and disks hold the images."""
    memory_mb = machine.memory_gb * 1e3 * MEMORY_USED - model.memory_base
    by_memory = images * model.memory_image / memory_mb
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
    return POOL * (8 + 2) + POOL * 8 + 4 * feature_dim + 2 * MESSAGE_ROUNDS * MESSAGE_BYTES


def _transfer_ms(machine: Machine, size: float) -> float:
    return size * 8 / (machine.network_gbit * 1e6)


_CHECKED = (
    ("shards", "shards", "d"), ("images each", "images_per_shard", ",d"),
    ("query ms, measured", "whole", ".2f"), ("predicted", "predicted_whole", ".2f"),
    ("error", "error", "+.0%"), ("coarse ms, measured", "coarse", ".2f"),
    ("predicted", "predicted_coarse", ".2f"), ("error", "coarse_error", "+.0%"),
    ("memory MB, measured", "resident_mb", ",.0f"),
    ("predicted", "predicted_resident_mb", ",.0f"),
)  # fmt: skip
_PLANS = (
    ("images", "images", ".0e"), ("plan", "aim", "s"), ("shards", "shards", "d"),
    ("machines", "machines", "d"), ("codes per shard", "each", ".1e"),
    ("memory GB", "memory_gb", ".0f"), ("disk TB", "disk_tb", ".2f"),
    ("query ms", "query_ms", ".1f"), ("scan ms", "scan_ms", ".1f"), ("asking ms", "ask_ms", ".1f"),
    ("network ms", "network_ms", ".1f"), ("reads ms", "reads_ms", ".1f"),
    ("kB per query", "traffic_kb", ",.0f"), ("queries per second", "queries_per_second", ",.0f"),
    ("CPU ms at the front end", "front_end_ms", ".1f"), ("price per month", "price", ",.0f"),
)  # fmt: skip


def checked(seen: Sequence[Observation], model: CostModel, cores: int) -> list[dict[str, Any]]:
    """Predicted and measured values, side by side."""
    rows = []
    for one in seen:
        coarse = model.coarse(one.shards, one.images_per_shard, cores)
        predicted = model.whole(one.shards, one.images_per_shard, cores)
        rows.append(
            {
                **asdict(one),
                "whole": one.whole,
                "predicted_whole": predicted,
                "error": predicted / one.whole - 1,
                "predicted_coarse": coarse,
                "coarse_error": coarse / one.coarse - 1,
                "predicted_resident_mb": model.resident_mb(one.images_per_shard),
            }
        )
    return rows


def plans(model: CostModel, machine: Machine, image_bytes: float) -> list[dict[str, Any]]:
    """For each size: the fewest machines that hold it, and the number that answers fastest."""
    rows = []
    for images in SIZES:
        fewest = fewest_shards(model, machine, images, image_bytes)
        aims = {"fewest": fewest, "quickest": max(fewest, quickest_shards(model, machine, images))}
        for aim, shards in aims.items():
            made = plan(model, machine, images, shards, image_bytes=image_bytes)
            rows.append({**asdict(made), "aim": aim, "query_ms": made.query_ms})
    return rows


def text(m: CostModel, checks: Sequence[Observation], cores: int, image_bytes: float) -> str:
    """Constants, the check and the plans, as Markdown."""
    machine = Machine()
    return f"""## Constants

With S shards of n million images each, A(S, m) of them asked for m images:

- coarse = {m.coarse_base:.2f} + {m.coarse_shard:.2f} S + {1e6 * m.scan:.3f} n S / {cores} ms;
- fine = {m.fine_base:.2f} + {m.fine_shard:.2f} A(S, {POOL}) ms;
- records = {m.records_base:.2f} + {m.records_shard:.2f} A(S, {RESULTS}) ms;
- processor time of the asking process = {m.front_base:.2f} + {m.front_shard:.2f} S ms;
- memory of a shard's process = {m.memory_base:.0f} + {1e6 * m.memory_image:.1f} n MB.

## Predicted, then measured

{Table.of(checked(checks, m, cores), _CHECKED).markdown()}

## Plans

{Table.of(plans(m, machine, image_bytes), _PLANS).markdown()}

A machine: {machine.cores} cores, {machine.memory_gb:.0f} GB of memory read at
{machine.memory_gb_per_second:.0f} GB/s, {machine.disk_tb:.0f} TB of SSD with reads of
{machine.read_ms} ms, {machine.reads_at_once} at once, a network of
{machine.network_gbit:.0f} Gbit/s and {machine.round_trip_ms} ms
there and back, {machine.price:.0f} per month: assumed, not measured.
"""


def draw(
    path: Path, model: CostModel, seen: Sequence[Observation], cores: int, image_bytes: float
) -> None:
    """Measured and predicted times on this machine, and predicted ones on many machines."""
    here, beyond = panels(2)
    counts = sorted({o.shards for o in seen})
    largest = max(o.images_per_shard for o in seen)
    curves = {}
    for size in sorted({o.images_per_shard for o in seen}):
        own = [o for o in seen if o.images_per_shard == size]
        name = f"{size:,} images each" + (" (not fitted)" if size == largest else "")
        curves[name] = Curve([o.shards for o in own], [o.whole for o in own], "points")
        predicted = [model.whole(count, size, cores) for count in counts]
        curves[f"{name}: model"] = Curve(counts, predicted, "model", like=name)
    title = f"All shards on one machine of {cores} cores; lines: model"
    plot_curves(curves, axes=here, xlabel="shards", ylabel="ms per query", title=title)
    here.set(ylim=(0, None), xticks=counts)
    curves = {}
    for images in SIZES:
        least = fewest_shards(model, Machine(), images, image_bytes)
        counts = [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if s >= least]
        made = [plan(model, Machine(), images, s, image_bytes=image_bytes) for s in counts]
        name = f"$10^{{{len(str(images)) - 1}}}$ images"
        curves[name] = Curve(counts, [one.query_ms for one in made])
    plot_curves(
        curves,
        axes=beyond,
        xlabel="machines that hold the images once",
        ylabel="ms per query, predicted",
        xscale="log",
        yscale="log",
        title=f"One shard per machine of {Machine().cores} cores",
    )
    save_figure(here.figure, path.parent, path.stem, svg=False)


def main() -> None:
    """Fit on all shards but the largest, check on these, and plan."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("figures", type=Path, help="shards.json of hashlens bench shards --out")
    parser.add_argument("--plot", type=Path, help="write this .png")
    arguments = parser.parse_args()
    results = json.loads(arguments.figures.read_text())
    seen = [Observation(**row) for row in results["measured"]]
    cores = results["environment"]["cores"]
    image_bytes = CODE_BYTES + 2 * FEATURE_DIM + results["record_bytes"]
    largest = max(o.images_per_shard for o in seen)
    model = fit([o for o in seen if o.images_per_shard < largest], cores)
    checks = [o for o in seen if o.images_per_shard == largest]
    print(text(model, checks, cores, image_bytes))
    if arguments.plot:
        draw(arguments.plot, model, seen, cores, image_bytes)


if __name__ == "__main__":
    main()
