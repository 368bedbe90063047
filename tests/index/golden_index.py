"""Makes tests/data/index-v1 and what it must answer. Run once a format version, never again.

python tests/index/golden_index.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import HashIndex, SearchOptions

FOLDER = Path(__file__).parents[1] / "data" / "index-v1"
ANSWERS = FOLDER.with_name("index-v1-answers.json")


def make(path: Path) -> None:
    """An index that has seen adding, removing, updating, encoding anew and compacting."""
    rng = np.random.default_rng(20)
    codes = rng.integers(0, 256, (60, 6), dtype=np.uint8)
    codes[10:20] = codes[:10]  # ties
    features = rng.integers(-8, 9, (60, 5)).astype(np.float32)
    with HashIndex.create(path, bits=44, feature_dim=5, fingerprint="901d") as i:
        codes[:, 5] &= 15  # pad bits are 0
        i.add_encoded(
            codes[:40],
            features[:40],
            [f"/photos/{n}.jpg" for n in range(40)],
            [None if n % 7 == 0 else f"class {n % 4}" for n in range(40)],
            [{"price": n, "brand": "Ünï \"q'"} if n % 2 else None for n in range(40)],
        )
        i.remove([3, 8, 30])
        i.compact()
        i.add_encoded(codes[40:], features[40:], [f"digits#{n}" for n in range(20)])
        i.replace_encoded([5, 41], codes[:2], features[:2])
        i.remove([50])
        i.update(6, label="nul \0", metadata={'a"b': "x\0y", "list": [1, None]})


def answers(index: HashIndex) -> dict[str, Any]:
    """Everything that a reader can ask of it."""
    ids, codes, features = index.encoded()
    queries = codes[:6], features[:6].astype(np.float32)
    result: dict[str, Any] = {
        "records": [list(record) for record in index.records()],
        "ids": ids.tolist(),
        "codes": [bytes(code).hex() for code in codes],
        "features": features.astype(float).tolist(),
        "fingerprint": index.fingerprint,
        "bits": index.bits,
    }
    for mode in ("hds", "bcs", "es"):
        found = index.search_encoded(*queries, SearchOptions(7, mode=mode, pool=20))
        result[mode] = found.ids.tolist()
        result[f"{mode} distances"] = np.round(found.distances.astype(float), 3).tolist()
    where = {"label": ["class 1", "class 2"], "price": {"<": 30}}
    result["where"] = [hit.id for hit in index.search(11, k=5, where=where)]
    return result


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    make(FOLDER)
    with HashIndex.open(FOLDER) as opened:
        ANSWERS.write_text(json.dumps(answers(opened), ensure_ascii=True, indent=0) + "\n")
