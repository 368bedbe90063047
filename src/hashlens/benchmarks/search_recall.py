"""Speed against recall: approximate binary indexes on the same codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashlens.benchmarks.timing import as_rows, interleaved
from hashlens.codes.database import CodeDatabase
from hashlens.codes.search import hamming_distances, hamming_topk
from hashlens.protocols import Codes

if TYPE_CHECKING:
    from hashlens.benchmarks.search_speed import Plan, Report

BITS, K, QUERIES = 128, 10, 256

Answer = Callable[[], NDArray[Any]]


def recall(plan: Plan, threads: int, report: Report) -> list[dict[str, Any]]:
    """Each index at several settings: time a query, and recall at 10.

    A result counts as right when it is no farther than the true tenth, so ties are fair; its
    distance is computed here, not taken from the index.
    """
    from hashlens.benchmarks.search_speed import FLAT, clustered_codes, import_faiss

    codes = clustered_codes(plan.recall_n, BITS, plan.seed)
    queries = clustered_codes(QUERIES, BITS, plan.seed, stream=1)
    reach = hamming_topk(codes, queries, K)[0][:, -1]
    faiss = import_faiss()
    rows = []
    for engine, build, settings in _engines(plan, faiss, codes, queries, threads):
        report(f"recall: {engine} over {plan.recall_n:,} codes of {BITS} bits")
        begin = time.perf_counter()
        prepared = build()
        built = time.perf_counter() - begin
        for setting, answer in settings(prepared):
            ids = np.asarray(answer())
            found = _found(codes, queries, ids, reach)
            cell = {"n": plan.recall_n, "bits": BITS, "queries": QUERIES, "k": K}
            timing = interleaved({engine: answer}, QUERIES, min(plan.seconds, 3.0))
            rows += [
                {**row, "setting": setting, "recall": found, "build_seconds": built}
                for row in as_rows(cell, timing)
            ]
        if engine == FLAT:
            prepared.reset()
    return rows


def _found(codes: Codes, queries: Codes, ids: NDArray[Any], reach: NDArray[np.uint16]) -> float:
    right = 0
    for query, row, limit in zip(queries, ids, reach, strict=True):
        rows = np.unique(row[(row >= 0) & (row < len(codes))].astype(np.int64))
        right += int((hamming_distances(codes, query, rows) <= limit).sum())
    return right / (len(queries) * K)


def _engines(
    plan: Plan, faiss: Any, codes: Codes, queries: Codes, threads: int
) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Iterator[tuple[str, Answer]]]]]:
    """Name, how it is built, and its settings with how each answers all queries."""
    from hashlens.benchmarks.search_speed import DATABASE, FLAT, import_usearch

    def ours() -> Any:
        database = CodeDatabase(codes)
        database.organise()
        return database

    def exact(database: Any) -> Iterator[tuple[str, Answer]]:
        yield "exact", lambda: hamming_topk(database, queries, K)[1]

    def added(index: Any) -> Any:
        if not index.is_trained:
            index.train(codes[:: max(1, len(codes) // 50_000)])
        index.add(codes)
        return index

    def swept(
        name: str, values: tuple[int, ...], owner: Callable[[Any], Any] = lambda index: index
    ) -> Callable[[Any], Iterator[tuple[str, Answer]]]:
        def settings(index: Any) -> Iterator[tuple[str, Answer]]:
            for value in values:
                setattr(owner(index), name, value)
                yield f"{name}={value}", lambda: index.search(queries, K)[1]

        return settings

    def flat(index: Any) -> Iterator[tuple[str, Answer]]:
        yield "exact", lambda: index.search(queries, K)[1]

    def usearch_index() -> Any:
        module = import_usearch()
        index = module.Index(
            ndim=BITS, metric=module.MetricKind.Hamming, dtype=module.ScalarKind.B1
        )
        index.add(np.arange(len(codes)), codes, threads=threads)
        return index

    def usearch_settings(index: Any) -> Iterator[tuple[str, Answer]]:
        for value in (64, 256, 1024):
            index.expansion_search = value
            yield f"expansion={value}", lambda: index.search(queries, K, threads=threads).keys

    lists = int(4 * len(codes) ** 0.5)
    yield DATABASE, ours, exact
    yield FLAT, lambda: added(faiss.IndexBinaryFlat(BITS)), flat
    yield (
        "FAISS IndexBinaryHNSW",
        lambda: added(faiss.IndexBinaryHNSW(BITS, 16)),
        swept("efSearch", (16, 64, 256, 1024), lambda index: index.hnsw),
    )
    yield (
        "FAISS IndexBinaryMultiHash",
        lambda: added(faiss.IndexBinaryMultiHash(BITS, 4, 16)),
        swept("nflip", (0, 1, 2, 3)),
    )
    yield (
        "FAISS IndexBinaryIVF",
        lambda: added(faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, lists)),
        swept("nprobe", (1, 4, 16, 64)),
    )
    yield "USearch", usearch_index, usearch_settings
