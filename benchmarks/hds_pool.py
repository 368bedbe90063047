"""How many images HDS should look at: quality and time for pools of many sizes.

    python benchmarks/hds_pool.py MODEL SOURCE --validation 0.05 --seed 0

Queries are the validation images of a training run of MODEL on SOURCE (the same share and seed),
the database its training images. The test split plays no part, as a default is chosen by this.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from hashlens import Encoder, SearchOptions, open_source
from hashlens.data.labels import split_validation
from hashlens.index.ranking import ArraySearcher
from hashlens.models.encoder import encode_source

POOLS = (10, 30, 100, 200, 400, 1000, 3000, 10000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--validation", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--database", type=int, default=20000)
    parser.add_argument("--queries", type=int, default=1000)
    options = parser.parse_args()
    source = open_source(options.source)
    training, validation = split_validation(source.labels, options.validation, options.seed)
    rng = np.random.default_rng(0)
    training = rng.permutation(training)[: options.database]
    validation = rng.permutation(validation)[: options.queries]
    encoder = Encoder.load(options.model)
    database = encode_source(encoder, source.subset(np.sort(training)))
    queries = encode_source(encoder, source.subset(np.sort(validation)))
    searcher = ArraySearcher(database.codes, database.features.astype(np.float16))

    def measure(k: int, **how: object) -> tuple[float, float, np.ndarray]:
        began = time.perf_counter()
        found = searcher.search_encoded(queries.codes, queries.features, SearchOptions(k, **how))  # type: ignore[arg-type]
        took = 1000 * (time.perf_counter() - began) / len(queries.codes)
        right = database.labels[found.ids] == queries.labels[:, None]
        return float((right & (found.ids >= 0)).sum() / (k * len(right))), took, found.ids

    print(f"{len(database)} images, {len(queries)} queries, {encoder.bits} bits")
    for k in (10, 100):
        score, took, exact = measure(k, mode="es")
        print(f"k={k:<4} ES         precision {score:.4f}            {took:.3f} ms per query")
        score, took, _ = measure(k, mode="bcs")
        print(f"k={k:<4} BCS        precision {score:.4f}            {took:.3f} ms per query")
        for pool in (pool for pool in POOLS if pool >= k):
            measure(k, mode="hds", pool=pool)
            score, took, ids = measure(k, mode="hds", pool=pool)
            same = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, exact, strict=True)])
            text = f"k={k:<4} HDS {pool:>6} precision {score:.4f} of ES {same:.3f}"
            print(f"{text} {took:.3f} ms per query")


if __name__ == "__main__":
    main()
