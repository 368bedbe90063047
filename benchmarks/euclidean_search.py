"""Exhaustive Euclidean search over 4096-d features against binary codes: the paper's comparison.

``python benchmarks/euclidean_search.py [--features 200000] [--codes 1124087] [--seconds 4]``

FAISS searches the features in place, with the functions of IndexFlatL2, which would copy them;
Hashlens searches clustered codes of 128 bits. Prints milliseconds per query, and how many times
less the codes take when the features' time is scaled to as many images (the paper: 971.3).
"""

from __future__ import annotations

import argparse
from functools import partial

import faiss
import numpy as np

from hashlens.bench.search import clustered_codes
from hashlens.bench.timing import environment, interleaved, machine_line
from hashlens.codes.database import CodeDatabase
from hashlens.codes.search import hamming_topk
from hashlens.codes.threads import thread_count

DIMENSIONS, BITS, K = 4096, 128, 10


def main() -> None:
    """Measure batches of 1 and 32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=200_000)
    parser.add_argument("--codes", type=int, default=1_124_087)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    faiss.omp_set_num_threads(thread_count())
    base = np.empty((options.features, DIMENSIONS), np.float32)
    rng = np.random.default_rng(0)
    for at in range(0, len(base), 4096):
        part = base[at : at + 4096]
        part[:] = rng.random(part.shape, dtype=np.float32)
    queries = np.random.default_rng(1).random((32, DIMENSIONS), dtype=np.float32)
    database = CodeDatabase(clustered_codes(options.codes, BITS, 0))
    database.organise()
    asked = clustered_codes(32, BITS, 0, stream=1)
    print(machine_line(environment(thread_count())))
    for q in (1, 32):
        times = interleaved(
            {
                "half": partial(faiss.knn, queries[:q], base[: len(base) // 2], K),
                "all": partial(faiss.knn, queries[:q], base, K),
                "codes": partial(hamming_topk, database, asked[:q], K),
            },
            q,
            3 * options.seconds,
        )
        scaled = times["all"].minimum * options.codes / len(base)
        for name, time in times.items():
            print(f"q={q} {name}: minimum {time.minimum:.4f} ms, median {time.median:.4f} ms")
        print(
            f"q={q}: twice the features take {times['all'].minimum / times['half'].minimum:.2f} "
            f"times as long; {options.codes:,} would take {scaled:,.0f} ms per query, codes take "
            f"{scaled / times['codes'].minimum:,.0f} times less"
        )


if __name__ == "__main__":
    main()
