"""Every change of an index: arrays are synced before the database commits what they hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.index.files import NO_FILE, FileState
from hashlens.index.records import row_checksum
from hashlens.index.schema import ARRAYS, Meta, last_checksum, write_checksums, write_meta
from hashlens.index.store import Store
from hashlens.protocols import Codes, Ids

_INSERT = "INSERT INTO images VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?)"
_CONTENT = "uri, label, metadata, size, mtime_ns, digest"


class NewImage(NamedTuple):
    """A row to be: texts as they are stored."""

    uri: str | bytes
    label: str | bytes | None
    metadata: str | bytes | None
    file: FileState | None = None


def append_images(
    store: Store, codes: Codes, features: NDArray[Any], images: Iterable[NewImage]
) -> Ids:
    """Add encoded images in one commit; return their ids."""
    if not len(codes):
        return np.zeros(0, np.int64)
    with store.writing() as (connection, meta):
        ids = np.arange(meta.next_id, meta.next_id + len(codes), dtype=np.int64)
        connection.executemany(_INSERT, _rows(images, meta.next_id, meta.count))
        _append_arrays(store, connection, meta, codes, features, ids)
        _commit(connection, meta, count=meta.count + len(ids), next_id=meta.next_id + len(ids))
    return ids


def replace_images(
    store: Store,
    ids: Ids,
    codes: Codes,
    features: NDArray[Any],
    files: Sequence[FileState | None],
) -> None:
    """Give images new codes and features, and what is known of their files, in one commit."""
    with store.writing() as (connection, meta):
        old = _positions(connection, ids)
        _append_arrays(store, connection, meta, codes, features, ids)
        connection.executemany("INSERT INTO dead VALUES (?)", [(position,) for position in old])
        for place, (image_id, file) in enumerate(zip(ids.tolist(), files, strict=True)):
            sql = "UPDATE images SET position = ? WHERE id = ?"
            connection.execute(sql, (meta.count + place, image_id))
            _set(connection, image_id, dict(zip(FileState._fields, file or NO_FILE, strict=True)))
        _commit(connection, meta, count=meta.count + len(ids))


def remove_images(store: Store, ids: Ids) -> None:
    """Mark images as dead, in one commit."""
    with store.writing() as (connection, meta):
        dead = [(position,) for position in _positions(connection, ids)]
        connection.executemany("INSERT INTO dead VALUES (?)", dead)
        removed = [(image_id,) for image_id in ids.tolist()]
        connection.executemany("UPDATE images SET alive = 0 WHERE id = ?", removed)
        _commit(connection, meta)


def update_records(store: Store, changes: Iterable[tuple[int, dict[str, Any]]]) -> None:
    """Set columns (uri, label, metadata, file state) of images, in one commit."""
    with store.writing() as (connection, meta):
        for image_id, values in changes:
            _positions(connection, np.array([image_id]))
            _set(connection, image_id, values)
        _commit(connection, meta)


def drop_stale_files(folder: Path, generation: int) -> None:
    """Delete array files of other generations: a killed ``compact`` left them."""
    for name in ARRAYS:
        for path in folder.glob(f"{name}.*"):
            if path.suffix[1:].isdigit() and path.suffix != f".{generation}":
                path.unlink(missing_ok=True)


def _rows(
    images: Iterable[NewImage], first_id: int, first_position: int
) -> Iterable[tuple[Any, ...]]:
    position = first_position
    for image_id, (uri, label, metadata, file) in enumerate(images, first_id):
        state = file or NO_FILE
        checksum = row_checksum(image_id, uri, label, metadata, *state)
        yield (image_id, uri, label, metadata, position, *state, checksum)
        position += 1


def _append_arrays(
    store: Store,
    connection: sqlite3.Connection,
    meta: Meta,
    codes: Codes,
    features: NDArray[Any],
    ids: Ids,
) -> None:
    drop_stale_files(store.path, meta.generation)
    given = {"codes": codes, "features": features, "ids": ids[:, None]}
    for name, file in meta.arrays(store.path).items():
        checksums = file.append(given[name], meta.count, last_checksum(connection, name))
        write_checksums(connection, name, checksums)


def _positions(connection: sqlite3.Connection, ids: Ids) -> list[int]:
    """Positions of living images, or an error that names the ids which are not there."""
    sql = "SELECT position FROM images WHERE id = ? AND alive"
    found = [connection.execute(sql, (image_id,)).fetchone() for image_id in ids.tolist()]
    missing = [image_id for image_id, row in zip(ids.tolist(), found, strict=True) if row is None]
    if missing:
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InvalidInputError(f"ids: no image in the index with id {named}; nothing was changed")
    return [position for (position,) in found]


def _set(connection: sqlite3.Connection, image_id: int, values: dict[str, Any]) -> None:
    """Set columns of a row, and its checksum."""
    sql = f"SELECT {_CONTENT} FROM images WHERE id = ?"
    row = dict(
        zip(_CONTENT.split(", "), connection.execute(sql, (image_id,)).fetchone(), strict=True)
    )
    row.update(values)
    columns = ", ".join(f"{name} = ?" for name in row)
    connection.execute(
        f"UPDATE images SET {columns}, checksum = ? WHERE id = ?",
        (*row.values(), row_checksum(image_id, *row.values()), image_id),
    )


def _commit(connection: sqlite3.Connection, meta: Meta, **changes: Any) -> None:
    write_meta(connection, replace(meta, commit=meta.commit + 1, **changes))
