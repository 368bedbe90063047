"""Indexes in shards, made without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hashlens import HashIndex
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, write_catalogue

BITS, DIM = 16, 6


def part(images: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Some of the images, as arguments of ``add_encoded``."""
    return {name: values[start:stop] for name, values in images.items()}


def make_shards(folder: Path, images: dict[str, Any], bounds: Sequence[int]) -> None:
    """A shard for the images between each bound and the next."""
    shards = []
    for i, (start, stop) in enumerate(pairwise(bounds)):
        name = f"shard-{i:04d}"
        with HashIndex.create(folder / name, bits=BITS, feature_dim=DIM) as shard:
            shard.add_encoded(**part(images, start, stop))
        shards.append(Shard(name, (IdRange(start, 0, stop - start),)))
    write_catalogue(folder, Catalogue(BITS, DIM, "", None, tuple(shards)))
