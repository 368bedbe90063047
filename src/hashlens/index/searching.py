"""From queries to codes, and from ids to records, inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.records import Hit, Record, load_text, to_record
from hashlens.index.snapshot import Snapshot
from hashlens.protocols import Codes, Encoder, Features, Ids, SearchResult

_COLUMNS = "id, uri, label, metadata"


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
        at = positions(connection, np.array(list(queries.ids.values()), np.int64))
        codes[places], features[places] = snapshot.codes[at], snapshot.features[at]
    return codes, features


def positions(connection: sqlite3.Connection, ids: Ids) -> Ids:
    """Positions of living images.

    Raises
    ------
    InvalidInputError
        If one is not there.
    """
    sql = "SELECT position FROM images WHERE id = ? AND alive"
    return np.array([_one(connection, sql, i)[0] for i in ids.tolist()], np.int64)


def records(connection: sqlite3.Connection, ids: Iterable[int] | None) -> list[Record]:
    """Records of images in this order; of all living ones, by id, without ``ids``.

    Raises
    ------
    InvalidInputError
        If one is not there.
    """
    if ids is None:
        rows = connection.execute(f"SELECT {_COLUMNS} FROM images WHERE alive ORDER BY id")
        return [to_record(row) for row in rows]
    sql = f"SELECT {_COLUMNS} FROM images WHERE id = ? AND alive"
    return [to_record(_one(connection, sql, int(image_id))) for image_id in ids]


def to_hits(
    connection: sqlite3.Connection,
    snapshot: Snapshot,
    codes: Codes,
    result: SearchResult,
    *,
    euclidean: bool,
) -> list[list[Hit]]:
    """Results with their records."""
    sql = f"SELECT {_COLUMNS}, position FROM images WHERE id = ? AND alive"
    hits: list[list[Hit]] = []
    for code, ids, distances in zip(codes, result.ids, result.distances, strict=True):
        found = ids >= 0
        rows = [_one(connection, sql, image_id) for image_id in ids[found].tolist()]
        at = np.array([row[-1] for row in rows], np.int64)
        bits = _hamming(snapshot.codes, at, code)
        hits.append(
            [
                Hit(*to_record(row[:-1]), hamming, float(distance) if euclidean else None)
                for row, hamming, distance in zip(rows, bits, distances[found], strict=True)
            ]
        )
    return hits


def label_counts(connection: sqlite3.Connection) -> dict[str | None, int]:
    """Living images with each label."""
    sql = "SELECT label, COUNT(*) FROM images WHERE alive GROUP BY label ORDER BY label"
    return {load_text(label): count for label, count in connection.execute(sql)}


def ids_by_uri(connection: sqlite3.Connection) -> dict[str, list[int]]:
    """Ids of living images with each URI."""
    found: dict[str, list[int]] = {}
    for image_id, uri in connection.execute("SELECT id, uri FROM images WHERE alive ORDER BY id"):
        found.setdefault(load_text(uri) or "", []).append(image_id)
    return found


def _hamming(codes: Codes, at: Ids, code: NDArray[np.uint8]) -> list[int]:
    differing: list[int] = np.bitwise_count(codes[at] ^ code).sum(axis=1, dtype=np.int64).tolist()
    return differing


def _one(connection: sqlite3.Connection, sql: str, image_id: int) -> tuple[Any, ...]:
    inside = -(2**63) <= image_id < 2**63
    row = connection.execute(sql, (image_id,)).fetchone() if inside else None
    if row is None:
        raise InvalidInputError(f"id {image_id}: no such image in the index")
    found: tuple[Any, ...] = row
    return found
