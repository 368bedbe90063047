"""Search speed: exact and approximate, by size, and against exhaustive Euclidean search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.benchmarks.timing import as_rows, environment, interleaved
from hashlens.codes.database import CodeDatabase
from hashlens.codes.packing import pack_bits, to_words
from hashlens.codes.search import hamming_topk
from hashlens.codes.threads import thread_count
from hashlens.errors import HashlensError, MissingExtraError
from hashlens.protocols import Codes

CLASSES = 116
FLIPPED = 0.1
ARRAY, DATABASE = "hashlens (array)", "hashlens (CodeDatabase)"
FLAT, USEARCH = "FAISS IndexBinaryFlat", "USearch exact"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    n : int
        Codes in the exact comparison; the authors' largest collection has 1,124,087.
    bits : tuple of int
        Code lengths of the exact comparison.
    batches, ks : tuples of int
        Queries a call, and results a query.
    seconds : float
        For each cell of the exact comparison.
    recall_n : int
        Codes beside the approximate indexes, whose building takes minutes when they are many.
    sizes : tuple of int
        Numbers of 64-bit codes to show growth.
    features_n, features_dim : int
        Float32 features for exhaustive Euclidean search.
    seed : int
        Of all data.
    """

    n: int = 1_124_087
    bits: tuple[int, ...] = (48, 64, 128, 256)
    batches: tuple[int, ...] = (1, 32, 256)
    ks: tuple[int, ...] = (10, 1000)
    seconds: float = 8.0
    recall_n: int = 200_000
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    features_n: int = 200_000
    features_dim: int = 4096
    seed: int = 0

    def quick(self) -> Plan:
        """About a minute."""
        return replace(
            self,
            bits=(128,),
            seconds=2.0,
            recall_n=20_000,
            sizes=(10_000, 100_000, 1_000_000),
            features_n=20_000,
        )

    def full(self) -> Plan:
        """Everything, up to 100 million codes; the approximate indexes take long to build."""
        return replace(self, recall_n=self.n, sizes=(*self.sizes, 100_000_000))


def clustered_codes(n: int, bits: int, seed: int, stream: int = 0) -> Codes:
    """Codes around CLASSES random centres, each bit flipped with probability FLIPPED.

    Parameters
    ----------
    n, bits : int
        Number of codes and their length.
    seed : int
        Fixes the centres.
    stream : int
        Independent draws around the same centres: one for the database, one for the queries.
    """
    shape = (CLASSES, bits // 8)
    centres = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    rng = np.random.default_rng((seed, stream, bits))
    codes = np.empty((n, bits // 8), np.uint8)
    for at in range(0, n, 1 << 17):
        part = codes[at : at + (1 << 17)]
        part[:] = centres[rng.integers(0, CLASSES, len(part))]
        part ^= pack_bits(rng.random((len(part), bits), dtype=np.float32) < FLIPPED)
    return codes


PARTS = ("exact", "recall", "growth", "features")


def run(plan: Plan, report: Report, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Measure; ``report`` hears one line as each comparison begins.

    Parameters
    ----------
    plan : Plan
        How much is measured.
    report : function of a str
        Told what is being measured.
    parts : sequence of str
        Which of PARTS.

    Raises
    ------
    MissingExtraError
        If FAISS or USearch is not installed.
    HashlensError
        If an exact engine's distances differ from ours.
    """
    from hashlens.benchmarks import search_recall

    faiss = import_faiss()
    import_usearch()
    threads = thread_count()
    faiss.omp_set_num_threads(threads)
    warm_up(plan)
    measure: dict[str, Callable[[], Any]] = {
        "exact": lambda: [row for bits in plan.bits for row in exact(plan, bits, threads, report)],
        "recall": lambda: search_recall.recall(plan, threads, report),
        "growth": lambda: growth(plan, report),
        "features": lambda: features(plan, report),
    }
    return {
        "plan": dict(vars(plan)),
        "environment": environment(threads),
        **{part: measure[part]() for part in parts},
    }


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


def warm_up(plan: Plan) -> None:
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


def exact(plan: Plan, bits: int, threads: int, report: Report) -> list[dict[str, Any]]:
    """Exact engines side by side."""
    faiss, usearch = import_faiss(), import_usearch()
    codes = clustered_codes(plan.n, bits, plan.seed)
    asked = clustered_codes(max(plan.batches), bits, plan.seed, stream=1)
    database = CodeDatabase(codes)
    database.organise()
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(codes)
    rows = []
    for q in plan.batches:
        queries = np.ascontiguousarray(asked[:q])
        for k in plan.ks:
            report(f"exact: {plan.n:,} codes of {bits} bits, {q} queries, k = {k}")

            contestants: dict[str, Callable[[], Any]] = {
                FLAT: partial(flat.search, queries, k),
                DATABASE: partial(hamming_topk, database, queries, k),
                ARRAY: partial(hamming_topk, codes, queries, k),
            }
            _check_equal(contestants)
            if q == 32:
                contestants[USEARCH] = partial(
                    usearch.search, codes, queries, k, usearch.MetricKind.Hamming,
                    exact=True, threads=threads, dtype=usearch.ScalarKind.B1,
                )  # fmt: skip
            cell = {"bits": bits, "n": plan.n, "queries": q, "k": k}
            found = as_rows(cell, interleaved(contestants, q, plan.seconds))
            base = next(row["minimum"] for row in found if row["engine"] == FLAT)
            rows += [{**row, "times_faster": base / row["minimum"]} for row in found]
    return rows


def _check_equal(contestants: dict[str, Callable[[], Any]]) -> None:
    """Stop where an exact engine finds other distances."""
    right = np.asarray(contestants[FLAT]()[0])
    for name in (DATABASE, ARRAY):
        if not np.array_equal(contestants[name]()[0], right):
            raise HashlensError(f"{name}: distances differ from {FLAT}'s; please report this")


def growth(plan: Plan, report: Report) -> list[dict[str, Any]]:
    """One query, k = 10, over more and more codes of 64 bits, clustered and uniform."""
    faiss = import_faiss()
    rows: list[dict[str, Any]] = []
    for n in plan.sizes:
        report(f"growth: {n:,} codes of 64 bits")
        for kind in ("clustered", "uniform"):
            rows += _growth_at(faiss, plan, n, kind)
    return rows


def _growth_at(faiss: Any, plan: Plan, n: int, kind: str) -> list[dict[str, Any]]:
    from hashlens.codes.scan import Scan

    codes: NDArray[np.uint8]
    if kind == "clustered":
        codes = clustered_codes(n, 64, plan.seed)
        query = clustered_codes(1, 64, plan.seed, stream=1)
    else:
        rng = np.random.default_rng(plan.seed)
        codes = rng.integers(0, 1 << 64, n, dtype=np.uint64).view(np.uint8).reshape(n, 8)
        query = rng.integers(0, 256, (1, 8), dtype=np.uint8)
    database = CodeDatabase(codes)
    scan = Scan(database.snapshot(), to_words(query), np.zeros(0, np.bool_))
    contestants: dict[str, Callable[[], Any]] = {"hashlens (scan)": partial(scan.nearest, 10)}
    organised = None
    if kind == "clustered":
        organised = CodeDatabase(codes)
        contestants[DATABASE] = lambda: hamming_topk(organised, query, 10)
    if n <= 10_000_000:
        flat = faiss.IndexBinaryFlat(64)
        flat.add(codes)
        contestants[FLAT] = lambda: flat.search(query, 10)
    del codes
    if organised is not None and not organised.organise():
        del contestants[DATABASE]
    cell = {"bits": 64, "n": n, "queries": 1, "k": 10, "data": kind}
    return as_rows(cell, interleaved(contestants, 1, min(plan.seconds, 4.0)))


def features(plan: Plan, report: Report) -> list[dict[str, Any]]:
    """Exhaustive Euclidean search over features against binary codes: the paper's comparison.

    FAISS searches the array in place, with the functions of IndexFlatL2, which would copy it.
    """
    faiss = import_faiss()
    dim = plan.features_dim
    rows: list[dict[str, Any]] = []
    base = np.empty((plan.features_n, dim), np.float32)
    rng = np.random.default_rng(plan.seed)
    for at in range(0, len(base), 4096):
        part = base[at : at + 4096]
        part[:] = rng.random(part.shape, dtype=np.float32)
    queries = np.random.default_rng(plan.seed + 1).random((32, dim), dtype=np.float32)
    for n in (plan.features_n // 2, plan.features_n):
        report(f"Euclidean: {n:,} features of {dim} dimensions")
        for q in (1, 32):
            asked = queries[:q]
            contestants = {"FAISS IndexFlatL2": partial(faiss.knn, asked, base[:n], 10)}
            cell = {"n": n, "dimensions": dim, "queries": q, "k": 10}
            rows += as_rows(cell, interleaved(contestants, q, min(plan.seconds, 4.0)))
    return rows
