"""From ids to records and positions, inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.index.records import Hit, Record, load_text, to_record
from hashlens.index.snapshot import Snapshot
from hashlens.protocols import Codes, Ids, SearchResult

_COLUMNS = "id, uri, label, metadata"


def positions(connection: sqlite3.Connection, ids: Iterable[int]) -> Ids:
    """Positions of living images.

    Raises
    ------
    InvalidInputError
        If one is not there.
    """
    sql = "SELECT position FROM images WHERE id = ? AND alive"
    return np.array([_one(connection, sql, int(i))[0] for i in ids], np.int64)


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


def file_digest(connection: sqlite3.Connection, image_id: int) -> bytes | None:
    """Digest of a living image's file when it was encoded; None where it is not known.

    Raises
    ------
    InvalidInputError
        If the image is not there.
    """
    sql = "SELECT digest FROM images WHERE id = ? AND alive"
    digest: bytes | None = _one(connection, sql, image_id)[0]
    return digest


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
