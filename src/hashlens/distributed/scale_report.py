"""The measurements and plans of ``hashlens bench shards`` as text, page and picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hashlens.distributed.scale import CODE_BYTES, CostModel, Machine, plan

_STAGES = ("coarse", "fine", "records")
# Okabe and Ito's colours, told apart by most who are colour-blind
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")

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
    ("machines", "machines", "d"), ("codes a shard", "each", ".1e"),
    ("memory GB", "memory_gb", ".0f"), ("disk TB", "disk_tb", ".2f"),
    ("query ms", "query_ms", ".1f"), ("scan ms", "scan_ms", ".1f"), ("asking ms", "ask_ms", ".1f"),
    ("network ms", "network_ms", ".1f"), ("reads ms", "reads_ms", ".1f"),
    ("kB a query", "traffic_kb", ",.0f"), ("queries a second", "queries_per_second", ",.0f"),
    ("CPU ms at the front end", "front_end_ms", ".1f"), ("price a month", "price", ",.0f"),
)  # fmt: skip
_TABLES = (
    ("Measured", "fitted_on", _MEASURED),
    ("Predicted, then measured", "checked_on", _CHECKED),
    ("The merge alone", "merge", _MERGED),
    ("Plans", "plans", _PLANS),
)


def text(results: dict[str, Any]) -> str:
    """Tables and constants, as Markdown."""
    parts = []
    for title, part, columns in _TABLES:
        parts += [f"## {title}\n", _table(columns, results[part])]
        if part == "checked_on":
            parts += ["## Constants\n", _constants(results)]
        if part == "plans":
            machine = Machine(**results["machine"])
            parts.append(
                f"A machine: {machine.cores} cores, {machine.memory_gb:.0f} GB of memory read at "
                f"{machine.memory_gb_per_second:.0f} GB/s, {machine.disk_tb:.0f} TB of SSD with "
                f"reads of {machine.read_ms} ms, {machine.reads_at_once} at once, a network of "
                f"{machine.network_gbit:.0f} Gbit/s and {machine.round_trip_ms} ms to and fro, "
                f"{machine.price:.0f} a month: assumed, not measured.\n"
            )
    return "\n".join(parts)


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write shards.md, shards.png and shards.json; return the page's path.

    Parameters
    ----------
    results : dict
        From ``hashlens bench shards --json``.
    out : Path
        Folder, made where it is missing.
    command : str
        The command that made the figures, for the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = json.dumps({**results, "command": command}, indent=1)
    (out / "shards.json").write_text(figures + "\n", encoding="utf-8")
    plot(results, out / "shards.png")
    page = out / "shards.md"
    page.write_text(f"{_header(results, command)}\n{text(results)}", encoding="utf-8")
    return page


def plot(results: dict[str, Any], path: Path) -> None:
    """Left: a query on this machine, measured and predicted. Right: what is predicted beyond."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    here, beyond = figure.subplots(1, 2)
    _plot_here(here, results)
    _plot_beyond(beyond, results)
    figure.savefig(path, dpi=110)


def _plot_here(axes: Any, results: dict[str, Any]) -> None:
    model = CostModel(**results["model"])
    seen = [*results["fitted_on"], *results["checked_on"]]
    counts = sorted({o["shards"] for o in seen})
    for i, size in enumerate(sorted({o["images_per_shard"] for o in seen})):
        own = [o for o in seen if o["images_per_shard"] == size]
        checked = "predicted_whole" in own[0]
        axes.plot(
            [o["shards"] for o in own],
            [sum(o[stage] for stage in _STAGES) for o in own],
            linestyle="none",
            marker=_MARKERS[i],
            color=_COLOURS[i],
            markerfacecolor="none" if checked else _COLOURS[i],
            label=f"{size:,} images each" + (" (not fitted)" if checked else ""),
        )
        line = [
            model.coarse(s, size, results["cores"]) + model.fine(s) + model.records(s)
            for s in counts
        ]
        axes.plot(counts, line, color=_COLOURS[i], linewidth=1)
    axes.set(xlabel="shards", ylabel="ms a query", ylim=(0, None), xticks=counts)
    axes.set_title(f"All shards on one machine of {results['cores']} cores; lines: model")
    axes.legend(fontsize=8)


def _plot_beyond(axes: Any, results: dict[str, Any]) -> None:
    model, machine = CostModel(**results["model"]), Machine(**results["machine"])
    image_bytes = results["image_bytes"]
    for i, images in enumerate(dict.fromkeys(p["images"] for p in results["plans"])):
        least = min(p["shards"] for p in results["plans"] if p["images"] == images)
        counts = [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if s >= least]
        times = [plan(model, machine, images, s, image_bytes=image_bytes).query_ms for s in counts]
        exponent = len(str(images)) - 1
        axes.plot(
            counts, times, color=_COLOURS[i], marker=_MARKERS[i], markersize=4,
            label=f"$10^{{{exponent}}}$ images",
        )  # fmt: skip
    axes.set(xlabel="machines that hold the images once", ylabel="ms a query, predicted")
    axes.set(xscale="log", yscale="log", title="One shard a machine of 16 cores")
    axes.legend(fontsize=8)


def _constants(results: dict[str, Any]) -> str:
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
    machine = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"""# Search over shards

Made by `{command}`; the figures are in [shards.json](shards.json). What the model means and how far
to trust it: [scale](../background/scale.md).

- Machine: {machine["cores"]} cores, {machine["processor"]}, which all shards share with the asking
  process. Python {machine["python"]}; {versions}.
- Random codes of 64 bits and 64-d features, seed 0; `hds` with a pool of 200 and k = 10, one query
  at a time, 10 ms apart, the numbers of shards taking turns; medians of 100 queries after 10 that
  are not counted.

![Milliseconds of a query by shards, measured here and predicted beyond](shards.png)
"""


def _table(columns: Sequence[tuple[str, str, str]], rows: Iterable[dict[str, Any]]) -> str:
    lines = [" | ".join(title for title, _, _ in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(format(row[key], form) for _, key, form in columns) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)
