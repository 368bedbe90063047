"""Which codes without labels find the nearest by the cosine, on features of one frozen network.

``python benchmarks/unsupervised_recall.py grocery#train grocery#test --out FOLDER --backbone
timm:mobilenetv2_100 --weights FILE --size 160`` extracts features once, learns codes from the
database's without labels, and searches it with the queries', which nothing was learned from; ties
in the order of ids. A row has, as mean and standard deviation over the seeds: how many of the 10
nearest the codes alone find, how many of them are among the ``POOL`` nearest by the codes, and how
many of the first 10 by the codes have the query's label. ``rotation`` is the signs of principal
components after a random rotation, which is where ITQ starts; ``sign`` the sign of each value less
its mean, one bit each; ``cosine`` is exact search. What was measured stays in FOLDER, so a run goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hashlens import Hasher, hamming_topk, open_source, pack_bits
from hashlens.baselines.base import principal_components, random_rotation
from hashlens.machine import hardware, versions
from hashlens.models.backbones import create_backbone
from hashlens.paper.runs import plain_features

K, POOL = 10, 200
SCORES = ("recall", "in_pool", "precision")


def features(options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Features at unit length and labels, of database and queries."""
    base = create_backbone(options.backbone, size=options.size, weights=options.weights)
    vectors, labels = [], []
    for name, most in (("database", options.most), ("queries", options.asked)):
        source = open_source(getattr(options, name))
        source = source.subset(np.random.default_rng(0).permutation(len(source))[:most])
        kept = options.out / f"features-{name}.safetensors"
        values = plain_features(source, base, kept, Console(quiet=True))
        vectors.append(values / np.linalg.norm(values, axis=1, keepdims=True))
        labels.append(np.array(source.labels))
    return vectors, labels


def learn(method: str, bits: int, seed: int, vectors: Any) -> Callable[[Any], Any]:
    """What turns vectors into codes."""
    if method == "rotation":
        found = principal_components(vectors, bits)
        turned = found.directions @ random_rotation(bits, np.random.default_rng(seed))
        return lambda asked: pack_bits((asked - found.mean) @ turned >= 0)
    if method == "sign":
        return lambda asked: pack_bits(asked >= vectors.mean(axis=0))
    return Hasher(bits, method=method, seed=seed).fit(vectors).transform


def scores(ids: Any, near: Any, labels: list[Any]) -> dict[str, float]:
    """Scores of one search, whose ids are those of the pool; ``near`` is true of each neighbour."""
    found = np.take_along_axis(near, ids, axis=1)
    alike = labels[0][ids[:, :K]] == labels[1][:, None]
    rates = found[:, :K].mean(), found.sum(axis=1).clip(max=K).mean() / K, alike.mean()
    return dict(zip(SCORES, map(float, rates), strict=True))


def main() -> None:
    """Print a row for each method and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("queries")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True, help="side of a picture, in pixels")
    parser.add_argument("--most", type=int, help="images of the database, drawn with seed 0")
    parser.add_argument("--asked", type=int, help="queries, drawn with seed 0")
    parser.add_argument("--learned", type=int, help="images of the database to learn from")
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--methods", default="ITQ,rotation,LSH,sign,bihalf,crovca-unsupervised")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, with seeds 0, 1, ...")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    vectors, labels = features(options)
    cosines = vectors[1] @ vectors[0].T
    ranked = np.argsort(-cosines, axis=1, kind="stable")
    reach = np.take_along_axis(cosines, ranked[:, K - 1 : K], axis=1)
    near = cosines >= reach - 1e-6  # what is as near as the tenth counts
    print(hardware(), versions("hashlens", "torch", "numpy"), flush=True)
    print(f"{len(vectors[0]):,} searched by {len(vectors[1]):,}, {vectors[0].shape[1]:,} values")
    print(f"| cosine |  | {scores(ranked[:, :POOL], near, labels)['precision']:.3f} |", flush=True)
    for method in options.methods.split(","):
        width = str(vectors[0].shape[1])
        for bits in map(int, [width] if method == "sign" else options.bits.split(",")):
            cells = []
            for seed in range(1 if method == "sign" else options.seeds):
                kept = options.out / f"{method}-{bits}-{seed}.json"
                if not kept.exists():
                    encode = learn(method, bits, seed, vectors[0][: options.learned])
                    _, ids = hamming_topk(*map(encode, vectors), k=POOL)
                    kept.write_text(json.dumps(scores(ids, near, labels)))
                cells.append(json.loads(kept.read_text()))
            rows = {name: [cell[name] for cell in cells] for name in SCORES}
            shown = (f"{np.mean(row):.3f} ± {np.std(row):.3f}" for row in rows.values())
            print(f"| {method} | {bits} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
