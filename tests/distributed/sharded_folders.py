"""Indexes in shards, made without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.distributed.snapshots import SHARD_SHIFT, creating
from hashlens.index.layout import Meta

BITS, DIM = 16, 6


def part(images: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Some of the images, as arguments of ``add_encoded``."""
    return {name: values[start:stop] for name, values in images.items()}


def make_shards(folder: Path, images: dict[str, Any], bounds: Sequence[int]) -> None:
    """A shard for the images between each bound and the next."""
    meta = Meta(BITS, DIM, "float16", "", "")
    with creating(folder, meta, len(bounds) - 1) as shards:
        for shard, (start, stop) in zip(shards, pairwise(bounds), strict=True):
            shard.add_encoded(**part(images, start, stop))


def numbered(ids: Any, bounds: Sequence[int]) -> Any:
    """Ids that the sharded index gives to images of one index; -1 stays."""
    ids = np.asarray(ids)
    shards = np.searchsorted(np.array(bounds[1:]), ids, side="right")
    own = (shards << SHARD_SHIFT) + ids - np.array([*bounds[:-1], 0])[shards]
    return np.where(ids < 0, -1, own)
