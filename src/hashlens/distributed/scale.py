"""What a search over shards costs: measured here, fitted, and predicted for other sizes.

A query's time is that of a fan-out and merge, which grows with the shards, and that of scanning a
shard, which grows with its codes; shards that share a machine share its cores:

    coarse(S, n) = a + b S + c n S / min(S, cores)      fine(S) = e + f S

with S shards of n images each, all in milliseconds. On one machine of ``cores`` cores the scans
add up; on machines of their own they run side by side, and S / min(S, cores) is 1 (each machine
then scans its shard on all its cores: c is divided by them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, write_catalogue
from hashlens.distributed.sharded import ShardedIndex
from hashlens.index.arrays import SearchTrace
from hashlens.index.index import HashIndex

BITS = 64
FEATURE_DIM = 64
_ROUNDS = 40
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Observation:
    """Median milliseconds of a single query's stages over ``shards`` shards."""

    shards: int
    images_per_shard: int
    coarse: float
    fine: float


@dataclass(frozen=True)
class CostModel:
    """Constants of the model, in milliseconds (see the module)."""

    base: float
    per_shard: float
    per_image: float
    fine_base: float
    fine_per_shard: float

    def coarse(self, shards: int, images_per_shard: float, cores: int) -> float:
        """Milliseconds of coarse search on one machine of ``cores`` cores."""
        waves = shards / min(shards, cores)
        return self.base + self.per_shard * shards + self.per_image * images_per_shard * waves

    def fine(self, shards: int) -> float:
        """Milliseconds of fine search."""
        return self.fine_base + self.fine_per_shard * shards


def fit(observations: Sequence[Observation], cores: int) -> CostModel:
    """Least squares with constants of 0 or more.

    Parameters
    ----------
    observations : sequence of Observation
        Of at least two numbers of shards and two sizes.
    cores : int
        Of the machine that they were measured on.
    """
    from scipy.optimize import nnls

    columns = [
        [1.0, o.shards, o.images_per_shard * o.shards / min(o.shards, cores)] for o in observations
    ]
    # relative errors: a large size must not drown the small ones
    weights = np.array([1 / o.coarse for o in observations])
    coarse = [o.coarse for o in observations]
    constants, _ = nnls(np.array(columns) * weights[:, None], np.array(coarse) * weights)
    fine, _ = nnls(
        np.array([[1.0, o.shards] for o in observations]), np.array([o.fine for o in observations])
    )
    return CostModel(*constants.tolist(), *fine.tolist())


def make_shards(folder: Path, shards: int, images_per_shard: int, *, seed: int = 0) -> list[Shard]:
    """Shards of random codes and features below ``folder``, made once."""
    made = []
    for position in range(shards):
        name = f"shard-{position:04d}"
        path = folder / name
        if not path.exists():
            rng = np.random.default_rng((seed, position))
            with HashIndex.create(path, bits=BITS, feature_dim=FEATURE_DIM) as index:
                for start in range(0, images_per_shard, _BLOCK):
                    n = min(_BLOCK, images_per_shard - start)
                    codes = rng.integers(0, 256, (n, code_bytes(BITS)), dtype=np.uint8)
                    features = rng.standard_normal((n, FEATURE_DIM), dtype=np.float32)
                    index.add_encoded(codes, features, [""] * n)
        start = position * images_per_shard
        made.append(Shard(name, (IdRange(start, 0, images_per_shard),)))
    return made


def observe(folder: Path, shards: Sequence[Shard], *, seed: int = 1) -> Observation:
    """Time single queries, one at a time, over the given shards of one folder."""
    write_catalogue(folder, Catalogue(BITS, FEATURE_DIM, "", None, tuple(shards)))
    rng = np.random.default_rng(seed)
    coarse, fine = [], []
    with ShardedIndex.open(folder, deadline=120.0) as index:
        for _ in range(_ROUNDS):
            code = rng.integers(0, 256, (1, code_bytes(BITS)), dtype=np.uint8)
            feature = rng.standard_normal((1, FEATURE_DIM), dtype=np.float32)
            trace = SearchTrace()
            index.search_hits(code, feature, 10, trace=trace)
            coarse.append(1e3 * trace.coarse)
            fine.append(1e3 * trace.fine)
            time.sleep(0.01)
    return Observation(
        len(shards), shards[0].count, float(np.median(coarse)), float(np.median(fine))
    )


def measure(
    folder: Path,
    counts: Sequence[int],
    sizes: Sequence[int],
    report: Callable[[str], None],
) -> list[Observation]:
    """Observations for every number of shards and every size of a shard."""
    found = []
    for size in sizes:
        parent = folder / f"images-{size}"
        parent.mkdir(parents=True, exist_ok=True)
        shards = make_shards(parent, max(counts), size)
        for count in counts:
            one = observe(parent, shards[:count])
            found.append(one)
            report(
                f"{count} shards of {size:,}: coarse {one.coarse:.2f} ms, fine {one.fine:.2f} ms"
            )
    return found
