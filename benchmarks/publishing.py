"""How long single images take to be published in a shard of so many rows.

python benchmarks/publishing.py --rows 100000 --adds 200
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from hashlens.distributed.sharded import ShardedIndex
from hashlens.distributed.snapshots import creating
from hashlens.index.layout import Meta

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--adds", type=int, default=200)
given = parser.parse_args()
n, rng = given.rows, np.random.default_rng(0)
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "index"
    with creating(folder, Meta(64, 64, "float16", "", ""), 1) as (shard,):
        shard.add_encoded(
            rng.integers(0, 256, (n, 8), dtype=np.uint8),
            rng.standard_normal((n, 64)).astype(np.float32),
            [f"/pictures/of/the/shop/{i:012d}.jpg" for i in range(n)],
        )
    index, taken = ShardedIndex.open(folder), []
    for i in range(given.adds):
        began = time.perf_counter()
        index.add_encoded(np.zeros((1, 8), np.uint8), np.zeros((1, 64)), [f"/new/{i}.jpg"])
        taken.append(time.perf_counter() - began)
ms = np.array(taken) * 1e3
print(
    f"{n:,} rows, {given.adds} adds: {ms.sum() / 1e3:.1f} s; each at least {ms.min():.1f} ms, "
    f"median {np.median(ms):.1f} ms, at most {ms.max():.1f} ms"
)
