"""``verify``: read everything, and name what is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np

from hashlens.errors import IndexStoreError
from hashlens.index.layout import TABLES, Meta, read_checksums
from hashlens.index.rows import row_checksum
from hashlens.index.store import HEAD, Store, read_head

_RESTORE = "restore the folder from a backup"
_TRIES = 3
_ROWS = (
    "SELECT id, position, alive, checksum, uri, label, metadata, size, mtime_ns, digest FROM images"
)


def find_damage(store: Store, progress: Callable[[int], None] | None = None) -> list[str]:
    """Check every byte that counts; return one line for each thing that is damaged."""
    for _ in range(_TRIES):
        generation = store.meta().generation
        damage = _find_damage(store, progress)
        if not damage or store.meta().generation == generation:
            break  # or else `compact` took the files away while they were read
    return damage


def _find_damage(store: Store, progress: Callable[[int], None] | None) -> list[str]:
    damage = []
    if read_head(store.path) is None:
        damage.append(
            f"{store.path / HEAD}: missing or damaged; no image is lost by it, and the next "
            "change of the index writes it again"
        )
    with store.reading() as (connection, meta):
        for (line,) in connection.execute("PRAGMA integrity_check"):
            if line != "ok":
                damage.append(f"{store.database}: {line}; {_RESTORE}")
        tables = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
        if {sql for (sql,) in tables} != set(TABLES):
            damage.append(f"{store.database}: its tables are not those of an index; {_RESTORE}")
            return damage
        damage += _damaged_arrays(store, connection, meta, progress)
        damage += _damaged_rows(store, connection, meta)
    return damage


def _damaged_arrays(
    store: Store,
    connection: sqlite3.Connection,
    meta: Meta,
    progress: Callable[[int], None] | None,
) -> Iterator[str]:
    for name, file in meta.arrays(store.path).items():
        try:
            rows = file.map(meta.count)
        except IndexStoreError as error:
            yield str(error)
            continue
        for block in file.damaged_blocks(rows, read_checksums(connection, name)):
            yield file.damage(block)
        if progress is not None:
            progress(meta.count)


def _damaged_rows(store: Store, connection: sqlite3.Connection, meta: Meta) -> Iterator[str]:
    """Rows against their checksums; positions against the array of ids."""
    file = meta.arrays(store.path)["ids"]
    ids = None
    with suppress(IndexStoreError):  # reported already
        ids = file.map(meta.count)[:, 0].tolist()
    used = np.zeros(meta.count, np.int64)
    for image_id, position, alive, checksum, *content in connection.execute(_ROWS):
        wrong = checksum != row_checksum(image_id, *content) or alive not in (0, 1)
        if alive and not wrong:
            wrong = not 0 <= position < meta.count
            if not wrong:
                used[position] += 1
                wrong = ids is not None and ids[position] != image_id
        if wrong:
            yield f"{store.database}: the row of image {image_id} is damaged; {_RESTORE}"
    for (position,) in connection.execute("SELECT position FROM dead"):
        if 0 <= position < meta.count:
            used[position] += 1
    if (used != 1).any():
        at = int(np.flatnonzero(used != 1)[0])
        yield (
            f"{store.database}: position {at} belongs to {int(used[at])} images, expected 1, "
            f"living or dead; {_RESTORE}"
        )
