"""Fair timing: contestants take turns, so a busy machine slows all equally; and its page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.files import replace_file
from hashlens.machine import cores, processor_name, versions
from hashlens.report.plot import save_figure

MIN_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Times of one contestant, in milliseconds per query."""

    minimum: float
    median: float
    rounds: int


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], queries: int, seconds: float
) -> dict[str, Timing]:
    """Call the contestants in turn until the time is over, after one call each that warms up."""
    rng = np.random.default_rng(0)  # threads of one may still spin when the next one is called
    for call in contestants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    share = seconds / len(contestants)
    playing = list(contestants)
    while playing:
        for name in rng.permutation(playing).tolist():
            begin = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - begin)
        over = time.perf_counter() > end
        playing = [
            name
            for name in playing
            if len(times[name]) < MIN_ROUNDS or (not over and sum(times[name]) < share)
        ]
    return {
        name: Timing(
            1e3 * min(taken) / queries, 1e3 * float(np.median(taken)) / queries, len(taken)
        )
        for name, taken in times.items()
    }


def environment(threads: int) -> dict[str, Any]:
    """Hardware and versions that a figure belongs to."""
    found = versions("hashlens", "numpy", "numba", "faiss-cpu", "usearch", "ray")
    return {
        "processor": processor_name(),
        "cores": cores(),
        "threads": threads,
        "python": found.pop("python"),
        "versions": found,
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """An ``environment`` in words."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Machine: {machine['cores']} cores, {machine['processor']}. Python {machine['python']}; "
        f"{versions}."
    )


def as_rows(cell: Mapping[str, Any], timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """One row per contestant: what was measured, and its times."""
    return [{**cell, "engine": name, **asdict(timing)} for name, timing in timings.items()]


def write_page(
    out: Path,
    name: str,
    title: str,
    results: Mapping[str, Any],
    command: str,
    notes: str,
    body: str,
    drawn: Sequence[Any] = (),
) -> Path:
    """Write NAME.md, NAME.json, and NAME.png of drawn panels; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    figures = json.dumps({**results, "command": command}, indent=1)
    replace_file(out / f"{name}.json", figures + "\n")
    picture = ""
    if drawn:
        save_figure(drawn[0].figure, out, name, svg=False)
        picture = f"![{title}]({name}.png)\n\n"
    page = out / f"{name}.md"
    replace_file(
        page,
        f"# {title}\n\nMade by `{command}`; the figures are in [{name}.json]({name}.json).\n\n"
        f"- {machine_line(results['environment'])}\n{notes}\n\n{picture}{body}\n",
    )
    return page
