"""Where the time of a Hamming search goes: each step alone, on one thread.

    python benchmarks/search_roofline.py

Processor time of the best of many short rounds. The figures in
docs/background/hamming-search.md are from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np

from hashlens import hamming_topk
from hashlens.bench.search import clustered_codes
from hashlens.codes import rings
from hashlens.codes.database import CodeDatabase, flat_rows
from hashlens.codes.packing import BLOCK
from hashlens.codes.scan import load_rows
from hashlens.codes.vector import GROUP, any_below
from hashlens.types import Codes

N, NONE = 1_124_087, np.zeros(0, np.bool_)
CALLS = ((1, 10), (256, 10), (256, 1000))


@numba.njit(nogil=True)
def _passes(block, queries, limit, words, repeats):  # type: ignore[no-untyped-def]
    hits = 0
    for _ in range(repeats):
        for i in range(len(queries)):
            query = queries[i]
            for start in range(0, block.shape[1], GROUP):
                hits += any_below(block, start, query, limit, words) != 0
    return hits


@numba.njit(nogil=True)
def _load_all(data, n_bytes, n, block, words):  # type: ignore[no-untyped-def]
    for first in range(0, n, block.shape[1]):
        load_rows(data, n_bytes, first, min(block.shape[1], n - first), block, 0, words)


def best(call: Callable[[], object], rounds: int = 40) -> float:
    """Least processor time of this thread, seconds, after a call that warms up."""
    call()
    least = np.inf
    for _ in range(rounds):
        begin = time.thread_time()
        call()
        least = min(least, time.thread_time() - begin)
    return float(least)


def main() -> None:
    """Print every figure."""
    numba.set_num_threads(1)
    large = np.random.default_rng(0).integers(0, 1 << 62, 1 << 25, dtype=np.uint64)
    print(f"reading 256 MiB: {large.nbytes / best(large.max, 10) / 1e9:.1f} GB/s")
    for bits in (64, 128, 256):
        codes = clustered_codes(N, bits, 0)
        queries = clustered_codes(256, bits, 0, stream=1)
        database = CodeDatabase(codes)
        scan(bits, codes, queries, database)
        begin = time.process_time()
        database.organise()
        print(f"{bits} bits, clustering: {time.process_time() - begin:.3f} s of processor time")
        measure_rings(bits, queries, database)


def scan(bits: int, codes: Codes, queries: Codes, database: CodeDatabase) -> None:
    """The scan and its steps."""
    codes_now = database.current()
    words, block = codes_now.words, codes_now.blocks[0].copy()
    asked = np.ascontiguousarray(queries.view(np.uint64))[:64]

    def show(what: str, seconds: float, comparisons: int) -> None:
        each = 1e9 * seconds / comparisons
        print(f"{bits} bits, {what}: {each:.4f} ns a code and query")

    seconds = best(lambda: _passes(block, asked, np.uint64(1), words, 2))
    show("comparing, one block in the cache", seconds, 128 * BLOCK)
    scratch, flat = np.empty_like(block), flat_rows(codes)
    seconds = best(lambda: _load_all(flat, bits // 8, N, scratch, words))
    show("turning rows into columns", seconds, N)
    for q, k in CALLS:
        database._asked = 0  # stay with the scan
        seconds = best(partial(hamming_topk, database, queries[:q], k), 8)
        show(f"scan, {q} queries, k = {k}", seconds, q * N)


def measure_rings(bits: int, queries: Codes, database: CodeDatabase) -> None:
    """The search of clustered codes and its first step."""
    found = database.current()
    assert found.rings is not None
    pivots, words = len(found.rings.starts) - 1, found.words
    no_codes = found.rings._replace(starts=found.rings.starts * 0, size=0)
    asked, order = np.ascontiguousarray(queries.view(np.uint64)), np.arange(256)
    arguments = (asked, order, words, NONE, np.uint64(1), np.zeros(256, np.int64))
    seconds = best(partial(rings.within_rings, no_codes, *arguments))
    each = 1e6 * seconds / 256
    print(f"{bits} bits, rings: distances to {pivots} pivots, {each:.2f} us a query")
    for q, k in CALLS:
        seconds = best(partial(hamming_topk, database, queries[:q], k))
        print(f"{bits} bits, rings, {q} queries, k = {k}: {1e6 * seconds / q:.2f} us a query")


if __name__ == "__main__":
    main()
