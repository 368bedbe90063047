"""Objectives and shallow methods on the same frozen network's features, several seeds.

``python benchmarks/objectives.py DATABASE QUERIES --backbone NAME --weights FILE --out FOLDER``.
Features of both sources are computed once and kept in FOLDER. Each method learns from a part of
DATABASE; what it holds out for validation searches the rest (never QUERIES) and gives the column
"validation". Then QUERIES search DATABASE. A cell that was measured before is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hashlens import Hasher, HashlensError, open_source, pack_bits
from hashlens.baselines import create_method, method_names
from hashlens.data.labels import split_validation
from hashlens.evaluation.scoring import score_searcher
from hashlens.index.ranking import ArraySearcher
from hashlens.machine import cores, processor_name, versions
from hashlens.models.backbones import create_backbone
from hashlens.training.data import feature_inputs
from hashlens.training.objectives import objectives
from hashlens.types import Codes, EncodedImages, Features

SIGN, TRAINED = "sign", tuple(objectives())


def main() -> None:
    """Measure what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("queries")
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--bits", type=int, nargs="+", default=[48])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of methods; by default all")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    base = create_backbone(asked.backbone, size=asked.size, weights=asked.weights)
    parts = []
    for name in (asked.database, asked.queries):
        source = open_source(name)
        inputs = feature_inputs(
            source, base.preprocessing, base.module,
            asked.out / f"features-{len(source)}.safetensors", strict=True, console=Console(),
        )  # fmt: skip
        values = inputs.pixels.gather(np.arange(len(inputs.rows)))[0].numpy()
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        parts.append((values, np.array([source.label_name(i) for i in inputs.rows])))
    names = asked.only or [*TRAINED, *method_names()]
    rows = []
    for bits in asked.bits:
        for name in names:
            cells = [cell(asked.out, name, bits, seed, *parts) for seed in range(asked.seeds)]
            rows.append((name, bits, cells))
            print(line(name, bits, cells), flush=True)
    found = {f"{name} {bits}": cells for name, bits, cells in rows}
    about = {"machine": f"{cores()} cores, {processor_name()}", "versions": versions("torch")}
    (asked.out / "objectives.json").write_text(json.dumps({"cells": found, **about}, indent=1))
    print("\n| method | bits | validation mAP@1000 | mAP@1000 | mAP@all | radius 2 | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (row[1], -mean(row[2], "validation"))):
        print(line(*row))


def cell(out: Path, name: str, bits: int, seed: int, database: Any, queries: Any) -> dict[str, Any]:
    """Scores of one method, or why it has none; kept in a file."""
    kept = out / f"{name.lower()}-{bits}-{seed}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    vectors, labels = database
    numbers = np.unique(labels, return_inverse=True)[1]
    learned, held_out = split_validation(numbers, 0.1, seed)
    try:
        began = time.perf_counter()
        encode = learn(name, bits, seed, vectors[learned], labels[learned])
        seconds = time.perf_counter() - began
        mine = vectors[learned], labels[learned]
        validation = score(encode, mine, (vectors[held_out], labels[held_out]), bits)
        result = score(encode, database, queries, bits)
        result |= {"validation": validation["map@1000"], "seconds": seconds}
    except HashlensError as error:
        result = {"error": str(error)}
    kept.write_text(json.dumps(result))
    return result


def learn(name: str, bits: int, seed: int, vectors: Features, labels: Any) -> Any:
    """What turns vectors into codes."""
    if name == SIGN:
        return lambda values: pack_bits(values >= 0)
    if name in TRAINED:
        return Hasher(bits, method=name, seed=seed).fit(vectors, labels).transform
    return create_method(name, bits, seed=seed).fit(vectors, labels).encode


def score(encode: Any, database: Any, queries: Any, bits: int) -> dict[str, float]:
    """mAP of codes alone."""
    words = np.unique(np.concatenate([database[1], queries[1]]), return_inverse=True)[1]
    sides = []
    for (vectors, _), own in zip(
        (database, queries), np.split(words, [len(database[1])]), strict=True
    ):
        codes: Codes = encode(vectors)
        sides.append(EncodedImages(codes, np.zeros((len(codes), 0), np.float32), own))
    searcher = ArraySearcher(sides[0].codes)
    found = score_searcher(searcher, *sides, bits=bits, modes=["bcs"]).modes["bcs"]
    more = {name: found.more[name] for name in ("map@all", "precision_within_radius_2")}
    return {"map@1000": found.mean_average_precision, **more}


def mean(cells: list[dict[str, Any]], key: str) -> float:
    """Mean over the seeds that have one."""
    return float(np.mean([each[key] for each in cells if key in each] or [np.nan]))


def line(name: str, bits: int, cells: list[dict[str, Any]]) -> str:
    """A row of the table: mean and standard deviation over the seeds."""
    if "error" in cells[0]:
        return f"| {name} | {bits} | {cells[0]['error'][:90]} | | | | |"
    shown = []
    for key in ("validation", "map@1000", "map@all", "precision_within_radius_2"):
        values = [each[key] for each in cells]
        shown.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
    return f"| {name} | {bits} | {' | '.join(shown)} | {mean(cells, 'seconds'):.1f} |"


if __name__ == "__main__":
    main()
