"""Makes tests/data/shards-v2 and what it must answer. Run once a format version, never again.

PYTHONPATH=tests python -m distributed.golden_shards
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import SearchOptions
from hashlens.distributed.sharded import ShardedIndex

from .sharded_folders import BITS, DIM, make_shards

FOLDER = Path(__file__).parents[1] / "data" / "shards-v2"
ANSWERS = FOLDER.with_name("shards-v2-answers.json")


def make(path: Path) -> None:
    """Shards that have seen adding, removing, updating and another shard."""
    rng = np.random.default_rng(21)
    images = {
        "codes": rng.integers(0, 256, (30, BITS // 8), dtype=np.uint8),
        "features": rng.integers(-8, 9, (30, DIM)).astype(np.float32),
        "uris": [f"/photos/{n}.jpg" for n in range(30)],
        "labels": [None if n % 7 == 0 else f"class {n % 3}" for n in range(30)],
        "metadata": [{"price": n} if n % 2 else None for n in range(30)],
    }
    make_shards(path, images, [0, 18, 30])
    index = ShardedIndex.open(path)
    index.remove([3, (1 << 40) + 2])
    index.update(6, label="boots", metadata={"brand": "Ünï"})
    index.add_shard()
    index.add_encoded(images["codes"][:2], images["features"][:2], ["digits#0", "digits#1"])


def answers(index: ShardedIndex) -> dict[str, Any]:
    """What a reader can ask of it."""
    ids, codes, features = index.encoded()
    result: dict[str, Any] = {
        "records": [list(record) for record in index.records()],
        "codes": [bytes(code).hex() for code in codes],
        "features": features.astype(float).tolist(),
        "shards": [shard.images for shard in index.manifest.shards],
    }
    for mode in ("bcs", "hds", "es"):
        options = SearchOptions(7, mode=mode, where={"price": {"<": 25}})  # type: ignore[arg-type]
        found = index.search_encoded(codes[:6], features[:6].astype(np.float32), options)
        result[mode] = found.ids.tolist()
    assert ids.tolist() == [record[0] for record in result["records"]]
    return result


if __name__ == "__main__":
    make(FOLDER)
    ANSWERS.write_text(json.dumps(answers(ShardedIndex.open(FOLDER)), indent=1) + "\n")
