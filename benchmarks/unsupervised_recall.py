"""Which codes without labels find the nearest by the cosine: recall at 10 of the codes alone.

``python benchmarks/unsupervised_recall.py FOLDER SOURCE --bits 16,48 --methods ITQ,LSH`` reads the
features that ``hashlens reproduce field --out FOLDER`` kept. Methods learn from the database's;
those of the queries search it, ties in the order of ids. Printed are mean and standard deviation
over the seeds. ``rotation`` is the signs of principal components after a random rotation, which is
where ITQ starts: ITQ without iterations. SOURCE, the database, gives the labels that an objective
trains F8 by and chooses its epoch by; they shape no code of ``crovca-unsupervised`` and ``bihalf``,
which ``--no-labels`` trains without any.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import Hasher, hamming_topk, open_source, pack_bits
from hashlens.baselines import create_method, method_names
from hashlens.baselines.base import principal_components, random_rotation
from hashlens.machine import hardware, versions
from hashlens.training.folder import read_state

K = 10


def features(path: Path) -> Any:
    """The features that a file of ``reproduce field`` keeps, at unit length."""
    values = read_state(path)["features"].float().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def codes(method: str, bits: int, seed: int, vectors: Any, labels: Any) -> list[Any]:
    """Codes of database and queries, learned from the database."""
    if method == "rotation":
        found = principal_components(vectors[0], bits)
        turned = found.directions @ random_rotation(bits, np.random.default_rng(seed))
        return [pack_bits((part - found.mean) @ turned >= 0) for part in vectors]
    if method in method_names():
        shallow = create_method(method, bits, seed=seed).fit(vectors[0], labels)
        return [shallow.encode(part) for part in vectors]
    hasher = Hasher(bits, method=method, seed=seed).fit(vectors[0], labels)
    return [hasher.transform(part) for part in vectors]


def main() -> None:
    """Print a row for each length and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("source")
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--methods", default="rotation,LSH,ITQ,crovca-unsupervised,bihalf")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, with seeds 0, 1, ...")
    parser.add_argument("--no-labels", action="store_true")
    options = parser.parse_args()
    labels = None if options.no_labels else open_source(options.source).labels.tolist()
    vectors = [
        features(options.folder / f"features-{x}.safetensors") for x in ("database", "queries")
    ]
    near = np.argsort(-(vectors[1] @ vectors[0].T), axis=1, kind="stable")[:, :K]
    print(hardware(), versions("hashlens", "torch", "numpy"), flush=True)
    for bits in map(int, options.bits.split(",")):
        for method in options.methods.split(","):
            recalls = []
            for seed in range(options.seeds):
                database, queries = codes(method, bits, seed, vectors, labels)
                _, ids = hamming_topk(database, queries, k=K)
                found = [len(np.intersect1d(*pair)) / K for pair in zip(ids, near, strict=True)]
                recalls.append(np.mean(found))
            spread = f"{np.mean(recalls):.3f} ± {np.std(recalls):.3f}"
            print(f"| {method} | {bits} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
