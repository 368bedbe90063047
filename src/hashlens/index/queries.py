"""From queries, which are images or ids of images of the index, to codes and features."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.errors import IndexStoreError
from hashlens.index.lookups import positions
from hashlens.index.snapshot import Snapshot
from hashlens.protocols import Codes, Encoder, Features


class EncodedQueries(NamedTuple):
    """Queries of which the images are encoded, and the ids still to be looked up."""

    total: int
    images: list[int]
    codes: Codes | None
    features: Features | None
    ids: dict[int, int]


def encode_queries(queries: Sequence[Any], encoder: Encoder | None, path: Path) -> EncodedQueries:
    """Encode the queries that are images.

    Raises
    ------
    IndexStoreError
        If there are images and no encoder.
    ImageError
        If one cannot be read.
    """
    ids = {
        place: int(query)
        for place, query in enumerate(queries)
        if isinstance(query, int | np.integer) and not isinstance(query, bool)
    }
    images = [place for place in range(len(queries)) if place not in ids]
    if not images:
        return EncodedQueries(len(queries), [], None, None, ids)
    if encoder is None:
        raise IndexStoreError(
            f"{path}: opened without an encoder; give one to HashIndex.open to search by image, "
            "or search by id"
        )
    codes, features = encoder.encode([queries[place] for place in images])
    return EncodedQueries(len(queries), images, codes, features, ids)


def fill_in_ids(
    connection: sqlite3.Connection, snapshot: Snapshot, queries: EncodedQueries
) -> tuple[Codes, Features]:
    """Codes and features of all queries, those given by id from the index."""
    meta = snapshot.meta
    codes = np.zeros((queries.total, code_bytes(meta.bits)), np.uint8)
    features = np.zeros((queries.total, meta.feature_dim), np.float32)
    if queries.codes is not None and queries.features is not None:
        codes[queries.images], features[queries.images] = queries.codes, queries.features
    if queries.ids:
        places = list(queries.ids)
        at = positions(connection, queries.ids.values())
        codes[places], features[places] = snapshot.codes[at], snapshot.features[at]
    return codes, features
