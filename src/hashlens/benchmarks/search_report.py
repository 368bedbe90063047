"""The search benchmark as a page: tables, a plot, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hashlens.benchmarks.search_speed import ARRAY, CLASSES, DATABASE, FLAT, FLIPPED

PAPER_TIMES = 971.3
"""How many times faster than exhaustive search binary codes were, in the paper."""


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write search.json, search.png and search.md; return the page's path.

    Parts that were measured before, and not this time, stay as they were.

    Parameters
    ----------
    results : dict
        From ``search_speed.run``.
    out : Path
        Folder, made where it is missing.
    command : str
        The command that made the figures, for the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = out / "search.json"
    known = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    made = {part: command for part in _TABLES if part in results}
    results = {**known, **results, "commands": {**known.get("commands", {}), **made}}
    figures.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, out / "search.png")
    page = out / "search.md"
    page.write_text(f"{_header(results)}\n{text(results)}", encoding="utf-8")
    return page


def text(results: dict[str, Any]) -> str:
    """Tables of all parts that were measured, as Markdown."""
    parts = []
    for part, (title, columns) in _TABLES.items():
        if part in results:
            parts += [f"## {title}\n", _table(columns, results[part])]
    if "features" in results and "exact" in results:
        parts.append("\n".join(features_summary(results)) + "\n")
    return "\n".join(parts)


def features_summary(results: dict[str, Any]) -> list[str]:
    """How many times faster binary codes are than 4096-d features, a sentence for each batch."""
    plan, lines = results["plan"], []
    for q in sorted({row["queries"] for row in results["features"]}):
        es = [row for row in results["features"] if row["queries"] == q]
        codes = [
            row
            for row in results["exact"]
            if (row["engine"], row["bits"], row["queries"], row["k"]) == (DATABASE, 128, q, 10)
        ]
        if not codes:
            continue
        half, whole = es[0], es[-1]
        scaled = whole["minimum"] * plan["n"] / whole["n"]
        lines.append(
            f"- Batches of {q}: twice the features take {whole['minimum'] / half['minimum']:.2f} "
            f"times as long, so {plan['n']:,} would take {scaled:,.0f} ms a query; 128-bit codes "
            f"take {codes[0]['minimum']:.4f} ms, {scaled / codes[0]['minimum']:,.0f} times less "
            f"(paper: {PAPER_TIMES})."
        )
    return lines


_EXACT = (
    ("bits", "bits", "d"), ("queries", "queries", "d"), ("k", "k", "d"), ("engine", "engine", "s"),
    ("ms a query, minimum", "minimum", ".4f"), ("median", "median", ".4f"),
    ("rounds", "rounds", "d"), ("times faster than FAISS", "times_faster", ".1f"),
)  # fmt: skip
_RECALL = (
    ("engine", "engine", "s"), ("setting", "setting", "s"), ("recall at 10", "recall", ".3f"),
    ("ms a query, minimum", "minimum", ".4f"), ("median", "median", ".4f"),
    ("seconds to build", "build_seconds", ".2f"),
)  # fmt: skip
_GROWTH = (
    ("codes", "n", ",d"), ("data", "data", "s"), ("engine", "engine", "s"),
    ("ms a query, minimum", "minimum", ".3f"), ("median", "median", ".3f"),
)  # fmt: skip
_FEATURES = (
    ("features", "n", ",d"), ("dimensions", "dimensions", "d"), ("queries", "queries", "d"),
    ("engine", "engine", "s"), ("ms a query, minimum", "minimum", ".2f"),
    ("median", "median", ".2f"),
)  # fmt: skip

_TABLES = {
    "exact": ("Exact search", _EXACT),
    "recall": ("Speed against recall", _RECALL),
    "growth": ("Growth with the number of codes", _GROWTH),
    "features": ("Exhaustive Euclidean search", _FEATURES),
}


def _table(columns: Sequence[tuple[str, str, str]], rows: Iterable[dict[str, Any]]) -> str:
    lines = [" | ".join(title for title, _, _ in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(format(row[key], form) for _, key, form in columns) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _header(results: dict[str, Any]) -> str:
    plan, machine = results["plan"], results["environment"]
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(results["commands"].values()))
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"""# Search speed

Made by {commands}; the figures are in [search.json](search.json).

- Machine: {machine["cores"]} cores, {machine["processor"]}; {machine["threads"]} threads for every
  engine. Python {machine["python"]}; {versions}.
- Codes: {CLASSES} random class centres, each bit flipped with probability {FLIPPED}, seed
  {plan["seed"]}; queries are other draws around the same centres.
- In each cell the engines take turns in the same run. The ratio is that of the minima. Before
  timing, distances of every exact engine were checked to be equal.
- `{ARRAY}` is `hamming_topk` over a NumPy array, with nothing prepared; `{DATABASE}` holds the same
  codes prepared once, as FAISS does on `add`. How both work, and where the time goes:
  [Hamming search](../background/hamming-search.md).

![Speed by batch, recall and size](search.png)
"""


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel each: exact engines, speed against recall, growth with n."""
    from matplotlib.figure import Figure

    panels = {"exact": _plot_exact, "recall": _plot_recall, "growth": _plot_growth}
    shown = [part for part in panels if part in results]
    figure = Figure(figsize=(5 * max(len(shown), 1), 4.5), layout="constrained")
    for part, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        panels[part](axes, results[part])
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _plot_recall(axes: Any, rows: list[dict[str, Any]]) -> None:
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        axes.plot(
            [row["recall"] for row in own],
            [1000 / row["minimum"] for row in own],
            marker="*" if engine == DATABASE else "o",
            markersize=14 if engine == DATABASE else 6,
            label=engine,
        )
    axes.set(xlabel="recall at 10", ylabel="queries a second", yscale="log")
    axes.set_title(f"{rows[0]['n']:,} codes of 128 bits, batches of 256")


def _plot_growth(axes: Any, rows: list[dict[str, Any]]) -> None:
    for engine, data in dict.fromkeys((row["engine"], row["data"]) for row in rows):
        own = [row for row in rows if (row["engine"], row["data"]) == (engine, data)]
        axes.plot(
            [row["n"] for row in own],
            [row["minimum"] for row in own],
            marker="o",
            linestyle="-" if data == "clustered" else "--",
            label=f"{engine}, {data}",
        )
    axes.set(xlabel="codes of 64 bits", ylabel="ms for one query", xscale="log", yscale="log")
    axes.set_title("growth, k = 10")


def _plot_exact(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["bits"] == 128]
    cells = list(dict.fromkeys((row["queries"], row["k"]) for row in rows))
    engines = [FLAT, ARRAY, DATABASE]
    for e, engine in enumerate(engines):
        times = [
            next(
                row["minimum"]
                for row in rows
                if (row["engine"], row["queries"], row["k"]) == (engine, *cell)
            )
            for cell in cells
        ]
        axes.bar([c + 0.27 * (e - 1) for c in range(len(cells))], times, 0.26, label=engine)
    axes.set_xticks(range(len(cells)), [f"{q} queries\nk = {k}" for q, k in cells], fontsize=8)
    axes.set(ylabel="ms a query", yscale="log", title=f"{rows[0]['n']:,} codes of 128 bits")
