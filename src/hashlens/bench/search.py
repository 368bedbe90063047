"""The search benchmark: exact engines next to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.baselines.itq import ITQ
from hashlens.bench.timing import as_rows, environment, interleaved, write_page
from hashlens.codes.database import CodeDatabase
from hashlens.codes.packing import pack_bits, to_words
from hashlens.codes.search import hamming_topk
from hashlens.codes.threads import thread_count
from hashlens.errors import HashlensError
from hashlens.report.page import Table
from hashlens.report.plot import panels, plot_bars
from hashlens.types import Codes

ARRAY, DATABASE, SCAN = "hashlens (array)", "hashlens (CodeDatabase)", "hashlens (scan)"
FLAT, COUNTING = "FAISS IndexBinaryFlat", "FAISS IndexBinaryFlat, use_heap=False"
SHARDS, USEARCH = "FAISS IndexBinaryShards, threaded", "USearch exact"
BITS = 128
CLASSES, DISTINCT = 116, 5_000
FLIPPED = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """How much is measured: codes, code lengths, queries per call, results per query.

    The authors' largest collection has 1,124,087 images. ``seconds`` is the time for each cell.
    """

    n: int = 1_124_087
    bits: tuple[int, ...] = (48, 64, 128, 256)
    wide: tuple[int, ...] = (1024, 1536)  # of an eighth of the codes, k = 10
    batches: tuple[int, ...] = (1, 32, 256)
    ks: tuple[int, ...] = (10, 1000)
    seconds: float = 8.0
    seed: int = 0

    def quick(self) -> Workload:
        """About a minute."""
        return replace(self, bits=(128,), wide=(), seconds=2.0)


def run(plan: Workload, say: Say) -> dict[str, Any]:
    """Measure; ``say`` gets a line when a comparison begins."""
    import faiss
    import usearch  # noqa: F401 - a missing one is told before hours of measuring

    threads = thread_count()
    faiss.omp_set_num_threads(threads)
    warm_up(plan.bits)
    fewer = replace(plan, n=plan.n // 8, ks=(10,))
    rows = [
        *(row for bits in plan.bits for row in exact(plan, bits, threads, say)),
        *(row for bits in plan.wide for row in exact(fewer, bits, threads, say)),
    ]
    return {"plan": dict(vars(plan)), "environment": environment(threads), "exact": rows}


def exact(plan: Workload, bits: int, threads: int, say: Say) -> list[dict[str, Any]]:
    """Exact engines side by side, on each kind of codes."""
    import faiss
    from usearch.compiled import MetricKind, ScalarKind
    from usearch.index import search as usearch_search

    from hashlens.codes.scan import Scan

    rows = []
    for data, make in KINDS.items():
        if bits in plan.wide and data == "ITQ":  # takes twice as many dimensions as bits
            continue
        codes = make(plan.n, bits, plan.seed)
        asked = make(max(plan.batches), bits, plan.seed, stream=1)
        database, unsorted = CodeDatabase(codes), CodeDatabase(codes)
        database.organise()
        flat: Any = faiss.IndexBinaryFlat(bits)
        counting: Any = faiss.IndexBinaryFlat(bits)
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
                    usearch_search, codes, queries, k, MetricKind.Hamming,
                    exact=True, threads=threads, dtype=ScalarKind.B1,
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


def warm_up(lengths: Sequence[int]) -> None:
    """Compile what will be timed."""
    for bits in lengths:
        few = clustered_codes(70_000, bits, 0)
        database = CodeDatabase(few)
        for organise in (False, True):
            if organise:
                database.organise()
            for k in (1, 10_000):
                hamming_topk(database, few[:2], k)
        hamming_topk(few, few[:2], 1)


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


def text(results: dict[str, Any]) -> str:
    """The table, as Markdown."""
    return Table.of(results["exact"], _COLUMNS).markdown()


_COLUMNS = (
    ("codes", "data", "s"), ("bits", "bits", "d"), ("queries", "queries", "d"), ("k", "k", "d"),
    ("engine", "engine", "s"),
    ("ms per query, minimum", "minimum", ".4f"), ("median", "median", ".4f"),
    ("rounds", "rounds", "d"), ("times faster than FAISS at its best", "times_faster", ".1f"),
)  # fmt: skip


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write search.md, search.png and search.json; return the page's path."""
    rows = [row for row in results["exact"] if row["bits"] == BITS and row["data"] == "clustered"]
    cells = list(dict.fromkeys((row["queries"], row["k"]) for row in rows))
    times = {(row["engine"], row["queries"], row["k"]): row["minimum"] for row in rows}
    drawn = panels()
    plot_bars(
        {engine: [times[engine, *cell] for cell in cells] for engine in (FLAT, ARRAY, DATABASE)},
        [f"{q} queries\nk = {k}" for q, k in cells],
        axes=drawn[0],
        ylabel="ms per query",
        yscale="log",
        title=f"{results['plan']['n']:,} clustered codes of {BITS} bits",
    )
    notes = f"""- {results["environment"]["threads"]} threads for every engine.
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
  [Hamming search](../background/hamming-search.md)."""
    return write_page(out, "search", "Search speed", results, command, notes, text(results), drawn)
