"""Approximate indexes by speed and recall, and how exact search grows with the number of codes.

``python benchmarks/search_scale.py --out FOLDER [--part recall|growth] [--quick | --full]``

Codes as in ``hashlens bench search``. ``--quick`` takes about a minute; ``--full`` grows to 100
million codes, and puts 1,124,087 into every index, some of which take long to build. Writes
search-scale.md, .png and .json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.bench.search import DATABASE, FLAT, KINDS, SCAN, clustered_codes, warm_up
from hashlens.bench.timing import as_rows, environment, interleaved, write_page
from hashlens.codes.database import CodeDatabase
from hashlens.codes.packing import to_words
from hashlens.codes.scan import Scan
from hashlens.codes.search import hamming_distances, hamming_topk
from hashlens.codes.threads import thread_count
from hashlens.report.page import Table
from hashlens.report.plot import Curve, panels, plot_curves
from hashlens.types import Codes

PARTS = ("recall", "growth")
BITS, K, QUERIES = 128, 10, 256


@dataclass(frozen=True)
class Plan:
    """Codes in the approximate indexes, numbers of codes to grow to, and seconds for each cell."""

    n: int = 200_000
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    seconds: float = 3.0
    seed: int = 0

    def quick(self) -> Plan:
        """About a minute."""
        return replace(self, n=20_000, seconds=1.0, sizes=self.sizes[:3])

    def full(self) -> Plan:
        """Everything."""
        return replace(self, n=1_124_087, sizes=(*self.sizes, 100_000_000))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    options = parser.parse_args(arguments)
    plan = Plan(seed=options.seed)
    plan = plan.quick() if options.quick else plan.full() if options.full else plan
    import faiss

    faiss.omp_set_num_threads(thread_count())
    warm_up((64, BITS))
    measure = {"recall": recall, "growth": growth}
    parts = [part for part in PARTS if part in (options.part or PARTS)]
    results = {
        "plan": dict(vars(plan)),
        "environment": environment(thread_count()),
        **{part: measure[part](plan) for part in parts},
    }
    command = "python benchmarks/search_scale.py" + "".join(f" --part {part}" for part in parts)
    command += " --quick" * options.quick + " --full" * options.full + f" --seed {plan.seed}"
    drawn = panels(len(parts))
    draw = {"recall": _plot_recall, "growth": _plot_growth}
    for part, axes in zip(parts, drawn, strict=True):
        draw[part](axes, results[part])
    tables = [
        f"## {_TABLES[part][0]}\n\n{Table.of(results[part], _TABLES[part][1]).markdown()}"
        for part in parts
    ]
    notes = f"""- {thread_count()} threads for every engine. Codes as in `hashlens bench search`.
- A result is right where it is no farther than the true tenth."""
    title, body = "Search at scale", "\n\n".join(tables)
    print(write_page(options.out, "search-scale", title, results, command, notes, body, drawn))


def recall(plan: Plan) -> list[dict[str, Any]]:
    """Time per query and recall at 10 of each index, at several settings.

    A result counts as right when it is no farther than the true tenth, so ties are fair; its
    distance is computed here, not taken from the index.
    """
    codes = clustered_codes(plan.n, BITS, plan.seed)
    queries = clustered_codes(QUERIES, BITS, plan.seed, stream=1)
    reach = hamming_topk(codes, queries, K)[0][:, -1]
    rows = []
    for engine in _engines(codes):
        begin = time.perf_counter()
        index = engine.build()
        built = time.perf_counter() - begin
        answer = partial(engine.ask, index, queries)
        for value in engine.values or (0,):
            if engine.option:
                setattr(engine.owner(index), engine.option, value)
            found = _found(codes, queries, np.asarray(answer()), reach)
            option = engine.option.removesuffix("_search")
            setting = f"{option}={value}" if option else "exact"
            for q in (QUERIES, 1):
                cell = {"n": plan.n, "bits": BITS, "queries": q, "k": K}
                asked = {engine.name: partial(engine.ask, index, queries[:q])}
                timing = interleaved(asked, q, plan.seconds)
                rows += [
                    {**row, "setting": setting, "recall": found, "build_seconds": built}
                    for row in as_rows(cell, timing)
                ]
        del index, answer, asked
    return rows


def _found(codes: Codes, queries: Codes, ids: NDArray[Any], reach: NDArray[np.uint16]) -> float:
    right = 0
    for query, row, limit in zip(queries, ids, reach, strict=True):
        rows = np.unique(row[(row >= 0) & (row < len(codes))].astype(np.int64))
        right += int((hamming_distances(codes, query, rows) <= limit).sum())
    return right / (len(queries) * K)


def _faiss_ids(index: Any, queries: Codes) -> NDArray[Any]:
    found: NDArray[Any] = index.search(queries, K)[1]
    return found


@dataclass(frozen=True)
class _Engine:
    """An index: how it is built and asked, and the attribute of it that trades speed for recall."""

    name: str
    build: Callable[[], Any]
    ask: Callable[[Any, Codes], NDArray[Any]] = _faiss_ids
    option: str = ""
    values: tuple[int, ...] = ()
    owner: Callable[[Any], Any] = lambda index: index


def _engines(codes: Codes) -> list[_Engine]:
    import faiss
    from usearch import index as usearch

    threads = thread_count()

    def organised() -> Any:
        database = CodeDatabase(codes)
        database.organise()
        return database

    def added(index: Any) -> Any:
        if not index.is_trained:
            index.train(codes[:: max(1, len(codes) // 50_000)])
        index.add(codes)
        return index

    def usearch_index() -> Any:
        metric, kind = usearch.MetricKind.Hamming, usearch.ScalarKind.B1
        index = usearch.Index(ndim=BITS, metric=metric, dtype=kind)
        index.add(np.arange(len(codes)), codes, threads=threads)
        return index

    def ivf() -> Any:
        lists = min(1024, len(codes) // 39)  # FAISS trains a list on 39 codes or more
        return added(faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, lists))

    return [
        _Engine(DATABASE, organised, lambda index, queries: hamming_topk(index, queries, K)[1]),
        _Engine(FLAT, lambda: added(faiss.IndexBinaryFlat(BITS))),
        _Engine(
            "FAISS IndexBinaryHNSW",
            lambda: added(faiss.IndexBinaryHNSW(BITS, 16)),
            option="efSearch",
            values=(16, 64, 256, 1024),
            owner=lambda index: index.hnsw,
        ),
        _Engine(
            "FAISS IndexBinaryMultiHash",
            lambda: added(faiss.IndexBinaryMultiHash(BITS, 4, 16)),
            option="nflip",
            values=(0, 1, 2, 3),
        ),
        _Engine("FAISS IndexBinaryIVF", ivf, option="nprobe", values=(1, 2, 4, 8, 16)),
        _Engine(
            "USearch",
            usearch_index,
            lambda index, queries: index.search(queries, K, threads=threads).keys,
            option="expansion_search",
            values=(64, 256, 1024),
        ),
    ]


def growth(plan: Plan) -> list[dict[str, Any]]:
    """One query, k = 10, over more and more codes of 64 bits, clustered and uniform."""
    rows: list[dict[str, Any]] = []
    for n in plan.sizes:
        for kind in ("clustered", "uniform"):
            rows += _growth_at(plan, n, kind)
    return rows


def _growth_at(plan: Plan, n: int, kind: str) -> list[dict[str, Any]]:
    codes, query = KINDS[kind](n, 64, plan.seed), KINDS[kind](1, 64, plan.seed, stream=1)
    database = CodeDatabase(codes)
    scan = Scan(database.current(), to_words(query), np.zeros(0, np.bool_))
    contestants: dict[str, Callable[[], Any]] = {SCAN: partial(scan.nearest, 10)}
    organised = None
    if kind == "clustered":
        organised = CodeDatabase(codes)
        contestants[DATABASE] = lambda: hamming_topk(organised, query, 10)
    if n <= 10_000_000:
        import faiss

        flat = faiss.IndexBinaryFlat(64)
        flat.add(codes)
        contestants[FLAT] = lambda: flat.search(query, 10)
    del codes
    if organised is not None and not organised.organise():
        del contestants[DATABASE]
    cell = {"bits": 64, "n": n, "queries": 1, "k": 10, "data": kind}
    return as_rows(cell, interleaved(contestants, 1, plan.seconds))


_RECALL = (
    ("queries", "queries", "d"), ("engine", "engine", "s"), ("setting", "setting", "s"),
    ("recall at 10", "recall", ".3f"),
    ("ms per query, minimum", "minimum", ".4f"), ("median", "median", ".4f"),
    ("seconds to build", "build_seconds", ".2f"),
)  # fmt: skip
_GROWTH = (
    ("codes", "n", ",d"), ("data", "data", "s"), ("engine", "engine", "s"),
    ("ms per query, minimum", "minimum", ".3f"), ("median", "median", ".3f"),
)  # fmt: skip

_TABLES = {
    "recall": ("Speed against recall", _RECALL),
    "growth": ("Growth with the number of codes", _GROWTH),
}


def _plot_recall(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["queries"] == QUERIES]
    plot_curves(
        {
            engine: Curve([row["recall"] for row in own], [1000 / row["minimum"] for row in own])
            for engine, own in _grouped(rows, "engine").items()
        },
        axes=axes,
        xlabel="recall at 10",
        ylabel="queries per second",
        yscale="log",
        title=f"{rows[0]['n']:,} codes of {BITS} bits, batches of {QUERIES}",
    )


def _plot_growth(axes: Any, rows: list[dict[str, Any]]) -> None:
    plot_curves(
        {
            name: Curve([row["n"] for row in own], [row["minimum"] for row in own])
            for name, own in _grouped(rows, "engine", "data").items()
        },
        axes=axes,
        xlabel="codes of 64 bits",
        ylabel="ms for one query",
        xscale="log",
        yscale="log",
        title="growth, k = 10",
    )


def _grouped(rows: list[dict[str, Any]], *keys: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(row[key] for key in keys), []).append(row)
    return groups


if __name__ == "__main__":
    main()
