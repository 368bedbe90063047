"""ITQ on GIST of pictures that were made larger first: where its printed curve may come from.

``python benchmarks/gist_size.py cifar10 --sizes 32 64 128 --images 20000 --queries 1000`` draws
training images evenly over the classes, which are the database, and test images, which are the
queries; for each size it makes GIST of the pictures at that size (bilinear, as the authors' LMgist
makes them), learns ITQ and LSH of 48 bits, and prints precision at 100, 400 and 1,000.
"""

from __future__ import annotations

import argparse

import numpy as np

from hashlens import open_source
from hashlens.baselines import create_method
from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.paper.gist import gist
from hashlens.paper.runs import search_ways
from hashlens.types import EncodedImages, Features, Ids

BITS, SEED = 48, 0


def drawn(source: Source, images: int) -> Ids:
    """Rows, equally many of each class."""
    rng, each = np.random.default_rng(SEED), images // len(source.classes)
    rows = [
        rng.choice(np.flatnonzero(source.labels == label), each, replace=False)
        for label in range(len(source.classes))
    ]
    return np.sort(np.concatenate(rows))


def described(source: Source, rows: Ids, size: int) -> Features:
    """GIST of some pictures at a size."""
    taken = Preprocessing(size, 3, (0.0,) * 3, (1.0,) * 3, interpolation="bilinear")
    return gist(decode_source(source, taken, rows, strict=True).pixels)


def main() -> None:
    """Print one line for each size and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--queries", type=int, default=1000)
    given = parser.parse_args()
    train, test = (open_source(f"{given.data}#{part}") for part in ("train", "test"))
    rows = drawn(train, given.images), drawn(test, given.queries)
    labels = train.labels[rows[0]], test.labels[rows[1]]
    for size in given.sizes:
        features = described(train, rows[0], size), described(test, rows[1], size)
        for name in ("ITQ", "LSH"):
            method = create_method(name, BITS, seed=SEED).fit(features[0])
            sides = [
                EncodedImages(method.encode(part), part, own)
                for part, own in zip(features, labels, strict=True)
            ]
            found = search_ways(*sides, BITS, modes=["bcs"])["bcs"].precision
            shown = "  ".join(f"@{k} {found[k]:.3f}" for k in (100, 400, 1000))
            print(f"{size:4} px  {name:4} {shown}", flush=True)


if __name__ == "__main__":
    main()
