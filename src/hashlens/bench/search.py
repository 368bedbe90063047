"""The search benchmark: exact engines, approximate ones, and growth with n."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.itq import ITQ
from hashlens.bench.timing import as_rows, environment, interleaved, machine_line
from hashlens.codes.database import CodeDatabase
from hashlens.codes.packing import pack_bits, to_words
from hashlens.codes.search import hamming_distances, hamming_topk
from hashlens.codes.threads import thread_count
from hashlens.errors import HashlensError, MissingExtraError
from hashlens.files import replace_file
from hashlens.report.page import Table
from hashlens.report.plot import Curve, panels, plot_bars, plot_curves, save_figure
from hashlens.types import Codes

PARTS = ("exact", "recall", "growth")
ARRAY, DATABASE, SCAN = "hashlens (array)", "hashlens (CodeDatabase)", "hashlens (scan)"
FLAT, COUNTING = "FAISS IndexBinaryFlat", "FAISS IndexBinaryFlat, use_heap=False"
SHARDS, USEARCH = "FAISS IndexBinaryShards, threaded", "USearch exact"
BITS, K, QUERIES = 128, 10, 256
CLASSES, DISTINCT = 116, 5_000
FLIPPED = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """How much is measured: codes, code lengths, queries per call, results per query.

    The authors' largest collection has 1,124,087 images. ``seconds`` is the time for each cell of
    the exact comparison. ``recall_n`` codes go into the approximate indexes, which take minutes to
    build for many.
    """

    n: int = 1_124_087
    bits: tuple[int, ...] = (48, 64, 128, 256)
    wide: tuple[int, ...] = (1024, 1536)  # of an eighth of the codes, k = 10
    batches: tuple[int, ...] = (1, 32, 256)
    ks: tuple[int, ...] = (10, 1000)
    seconds: float = 8.0
    recall_n: int = 200_000
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    seed: int = 0

    def quick(self) -> Workload:
        """About a minute."""
        return replace(
            self, bits=(128,), wide=(), seconds=2.0, recall_n=20_000, sizes=self.sizes[:3]
        )

    def full(self) -> Workload:
        """Everything, up to 100 million codes; the approximate indexes take long to build."""
        return replace(self, recall_n=self.n, sizes=(*self.sizes, 100_000_000))


def run(plan: Workload, say: Say, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Measure; ``say`` gets a line when a comparison begins."""
    faiss = import_faiss()
    import_usearch()
    threads = thread_count()
    faiss.omp_set_num_threads(threads)
    warm_up(plan)
    fewer = replace(plan, n=plan.n // 8, ks=(10,))
    measure: dict[str, Callable[[], Any]] = {
        "exact": lambda: [
            *(row for bits in plan.bits for row in exact(plan, bits, threads, say)),
            *(row for bits in plan.wide for row in exact(fewer, bits, threads, say)),
        ],
        "recall": lambda: recall(plan, threads, say),
        "growth": lambda: growth(plan, say),
    }
    return {
        "plan": dict(vars(plan)),
        "environment": environment(threads),
        **{part: measure[part]() for part in parts},
    }


def exact(plan: Workload, bits: int, threads: int, say: Say) -> list[dict[str, Any]]:
    """Exact engines side by side, on each kind of codes."""
    from hashlens.codes.scan import Scan

    faiss, usearch = import_faiss(), import_usearch()
    rows = []
    for data, make in KINDS.items():
        if bits in plan.wide and data == "ITQ":  # takes twice as many dimensions as bits
            continue
        codes = make(plan.n, bits, plan.seed)
        asked = make(max(plan.batches), bits, plan.seed, stream=1)
        database, unsorted = CodeDatabase(codes), CodeDatabase(codes)
        database.organise()
        flat, counting = faiss.IndexBinaryFlat(bits), faiss.IndexBinaryFlat(bits)
        counting.use_heap = False
        shards = faiss.IndexBinaryShards(bits, True)
        parts = [faiss.IndexBinaryFlat(bits) for _ in range(threads)]
        for part in parts:
            shards.add_shard(part)
        for index in (flat, counting, shards):
            index.add(codes)
        for q, k in itertools.product(plan.batches, plan.ks):
            say(f"exact: {plan.n:,} {data} codes of {bits} bits, {q} queries, k = {k}")
            queries = np.ascontiguousarray(asked[:q])
            scan = Scan(unsorted.current(), to_words(queries), np.zeros(0, np.bool_))
            contestants: dict[str, Callable[[], Any]] = {
                FLAT: partial(flat.search, queries, k),
                COUNTING: partial(counting.search, queries, k),
                DATABASE: partial(hamming_topk, database, queries, k),
                SCAN: partial(scan.nearest, k),
                ARRAY: partial(hamming_topk, codes, queries, k),
            }
            if q == 1:
                contestants[SHARDS] = partial(shards.search, queries, k)
            _check_equal(contestants)
            if q == 32 and data == "clustered":
                contestants[USEARCH] = partial(
                    usearch.search, codes, queries, k, usearch.MetricKind.Hamming,
                    exact=True, threads=threads, dtype=usearch.ScalarKind.B1,
                )  # fmt: skip
            cell = {"data": data, "bits": bits, "n": plan.n, "queries": q, "k": k}
            found = as_rows(cell, interleaved(contestants, q, plan.seconds))
            best = min(row["minimum"] for row in found if row["engine"].startswith("FAISS"))
            rows += [{**row, "times_faster": best / row["minimum"]} for row in found]
    return rows


def _check_equal(contestants: dict[str, Callable[[], Any]]) -> None:
    """Stop where an exact engine finds other distances."""
    right = np.asarray(contestants[FLAT]()[0])
    for name, search in contestants.items():
        if not np.array_equal(search()[0], right):
            raise HashlensError(f"{name}: distances differ from {FLAT}'s; please report this")


def recall(plan: Workload, threads: int, say: Say) -> list[dict[str, Any]]:
    """Time per query and recall at 10 of each index, at several settings.

    A result counts as right when it is no farther than the true tenth, so ties are fair; its
    distance is computed here, not taken from the index.
    """
    codes = clustered_codes(plan.recall_n, BITS, plan.seed)
    queries = clustered_codes(QUERIES, BITS, plan.seed, stream=1)
    reach = hamming_topk(codes, queries, K)[0][:, -1]
    rows = []
    for engine in _engines(codes, threads):
        say(f"recall: {engine.name} over {plan.recall_n:,} codes of {BITS} bits")
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
                cell = {"n": plan.recall_n, "bits": BITS, "queries": q, "k": K}
                asked = {engine.name: partial(engine.ask, index, queries[:q])}
                timing = interleaved(asked, q, min(plan.seconds, 3.0))
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


def _engines(codes: Codes, threads: int) -> list[_Engine]:
    faiss, usearch = import_faiss(), import_usearch()

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


def growth(plan: Workload, say: Say) -> list[dict[str, Any]]:
    """One query, k = 10, over more and more codes of 64 bits, clustered and uniform."""
    rows: list[dict[str, Any]] = []
    for n in plan.sizes:
        say(f"growth: {n:,} codes of 64 bits")
        for kind in ("clustered", "uniform"):
            rows += _growth_at(plan, n, kind)
    return rows


def _growth_at(plan: Workload, n: int, kind: str) -> list[dict[str, Any]]:
    from hashlens.codes.scan import Scan

    codes, query = KINDS[kind](n, 64, plan.seed), KINDS[kind](1, 64, plan.seed, stream=1)
    database = CodeDatabase(codes)
    scan = Scan(database.current(), to_words(query), np.zeros(0, np.bool_))
    contestants: dict[str, Callable[[], Any]] = {SCAN: partial(scan.nearest, 10)}
    organised = None
    if kind == "clustered":
        organised = CodeDatabase(codes)
        contestants[DATABASE] = lambda: hamming_topk(organised, query, 10)
    if n <= 10_000_000:
        flat = import_faiss().IndexBinaryFlat(64)
        flat.add(codes)
        contestants[FLAT] = lambda: flat.search(query, 10)
    del codes
    if organised is not None and not organised.organise():
        del contestants[DATABASE]
    cell = {"bits": 64, "n": n, "queries": 1, "k": 10, "data": kind}
    return as_rows(cell, interleaved(contestants, 1, min(plan.seconds, 4.0)))


def warm_up(plan: Workload) -> None:
    """Compile what will be timed."""
    for bits in {*plan.bits, 64}:
        few = clustered_codes(70_000, bits, plan.seed)
        database = CodeDatabase(few)
        for organise in (False, True):
            if organise:
                database.organise()
            for k in (1, 10_000):
                hamming_topk(database, few[:2], k)
        hamming_topk(few, few[:2], 1)


def import_faiss() -> Any:
    """FAISS, or an error that says how to install it."""
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("the search benchmark (FAISS)", "bench") from None
    return faiss


def import_usearch() -> Any:
    """USearch's index module, or an error that says how to install it."""
    try:
        import usearch.index
    except ImportError:
        raise MissingExtraError("the search benchmark (USearch)", "bench") from None
    return usearch.index


def clustered_codes(n: int, bits: int, seed: int, stream: int = 0) -> Codes:
    """Codes around CLASSES random centres, each bit flipped with probability FLIPPED."""
    shape = (CLASSES, bits // 8)
    centres = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    rng = np.random.default_rng((seed, stream, bits))
    codes = np.empty((n, bits // 8), np.uint8)
    for at in range(0, n, 1 << 17):
        part = codes[at : at + (1 << 17)]
        part[:] = centres[rng.integers(0, CLASSES, len(part))]
        part ^= pack_bits(rng.random((len(part), bits), dtype=np.float32) < FLIPPED)
    return codes


def uniform_codes(n: int, bits: int, seed: int, stream: int = 0) -> Codes:
    """Random codes: no search can skip much of them."""
    rng = np.random.default_rng((seed, stream, bits))
    return rng.integers(0, 256, (n, bits // 8), dtype=np.uint8)


def repeated_codes(n: int, bits: int, seed: int, stream: int = 0) -> Codes:
    """DISTINCT random codes, each many times: as of files that were copied."""
    kinds = uniform_codes(DISTINCT, bits, seed)
    return kinds[np.random.default_rng((seed, stream, bits)).integers(0, DISTINCT, n)]


def itq_codes(n: int, bits: int, seed: int, stream: int = 0) -> Codes:
    """ITQ codes of features whose variance falls as that of pixels does, 1 / dimension."""
    deviation = np.arange(1, 2 * bits + 1, dtype=np.float32) ** -0.5
    rng = np.random.default_rng(seed)
    learned = rng.standard_normal((20_000, 2 * bits), dtype=np.float32) * deviation
    method = ITQ(bits, seed=seed).fit(learned)
    rng = np.random.default_rng((seed, stream, bits))
    codes = np.empty((n, bits // 8), np.uint8)
    for at in range(0, n, 1 << 15):
        part = codes[at : at + (1 << 15)]
        drawn = rng.standard_normal((len(part), 2 * bits), dtype=np.float32)
        part[:] = method.encode(drawn * deviation)
    return codes


KINDS: dict[str, Callable[..., Codes]] = {
    "clustered": clustered_codes,
    "repeated": repeated_codes,
    "ITQ": itq_codes,
    "uniform": uniform_codes,
}


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write search.json, search.png and search.md; return the page's path.

    Parts that were measured before, and not this time, stay as they were.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = out / "search.json"
    known = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    made = {part: command for part in _TABLES if part in results}
    results = {**known, **results, "commands": {**known.get("commands", {}), **made}}
    replace_file(figures, json.dumps(results, indent=1) + "\n")
    draw = {"exact": _plot_exact, "recall": _plot_recall, "growth": _plot_growth}
    shown = [part for part in draw if part in results]
    drawn = panels(max(len(shown), 1))
    for part, axes in zip(shown, drawn, strict=False):
        draw[part](axes, results[part])
    save_figure(drawn[0].figure, out, "search", svg=False)
    page = out / "search.md"
    replace_file(page, f"{_header(results)}\n{text(results)}")
    return page


def text(results: dict[str, Any]) -> str:
    """Tables of all parts that were measured, as Markdown."""
    parts = []
    for part, (title, columns) in _TABLES.items():
        if part in results:
            parts += [f"## {title}", Table.of(results[part], columns).markdown()]
    return "\n\n".join(parts) + "\n"


_EXACT = (
    ("codes", "data", "s"), ("bits", "bits", "d"), ("queries", "queries", "d"), ("k", "k", "d"),
    ("engine", "engine", "s"),
    ("ms per query, minimum", "minimum", ".4f"), ("median", "median", ".4f"),
    ("rounds", "rounds", "d"), ("times faster than FAISS at its best", "times_faster", ".1f"),
)  # fmt: skip
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
    "exact": ("Exact search", _EXACT),
    "recall": ("Speed against recall", _RECALL),
    "growth": ("Growth with the number of codes", _GROWTH),
}


def _header(results: dict[str, Any]) -> str:
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(results["commands"].values()))
    return f"""# Search speed

Made by {commands}; the figures are in [search.json](search.json).

- {machine_line(results["environment"])}
- {results["environment"]["threads"]} threads for every engine.
- Codes, seed {results["plan"]["seed"]}; queries are other draws of the same kind. *Clustered*, as
  codes learned from class labels are: {CLASSES} random class centres, each bit flipped with
  probability {FLIPPED}. *Repeated*: {DISTINCT:,} random codes, each many times. *ITQ*: of random
  features whose variance falls as that of pixels does. *Uniform*: random.
- In each cell the engines take turns in the same run. The ratio is that of the minima, to the best
  of FAISS's engines in the cell. Before timing, the distances of all exact engines were checked to
  be equal.
- `{ARRAY}` is `hamming_topk` over a NumPy array, with nothing prepared; `{DATABASE}` holds the same
  codes prepared once, as FAISS does on `add`; `{SCAN}` is its scan of every code, for
  comparison. How they work, and where the time goes:
  [Hamming search](../background/hamming-search.md).

![Speed by batch, recall and size](search.png)
"""


def _plot_exact(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["bits"] == BITS and row["data"] == "clustered"]
    cells = list(dict.fromkeys((row["queries"], row["k"]) for row in rows))
    times = {(row["engine"], row["queries"], row["k"]): row["minimum"] for row in rows}
    plot_bars(
        {engine: [times[engine, *cell] for cell in cells] for engine in (FLAT, ARRAY, DATABASE)},
        [f"{q} queries\nk = {k}" for q, k in cells],
        axes=axes,
        ylabel="ms per query",
        yscale="log",
        title=f"{rows[0]['n']:,} clustered codes of {BITS} bits",
    )


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
