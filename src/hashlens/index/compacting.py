"""``compact``: an index without its dead rows, in new files, switched by one commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.index.array_file import ArrayFile
from hashlens.index.schema import write_checksums, write_meta
from hashlens.index.store import Store, sync_folder
from hashlens.index.writing import drop_stale_files
from hashlens.protocols import Ids

_COPY_BYTES = 1 << 26


def compact(store: Store) -> int:
    """Drop dead rows, and order the rest by id; return the number of rows dropped.

    The files of the next generation are written and synced beside the old ones. The commit that
    names them switches all readers at once; a kill before it leaves the old generation whole,
    and the new files are dropped by the next writer.
    """
    with store.writing() as (connection, meta):
        rows = list(connection.execute("SELECT id, position FROM images WHERE alive ORDER BY id"))
        ids, positions = np.array(rows, np.int64).reshape(-1, 2).T
        if np.array_equal(positions, np.arange(meta.count)):
            return 0
        drop_stale_files(store.path, meta.generation)
        new = replace(meta, generation=meta.generation + 1, count=len(ids), commit=meta.commit + 1)
        connection.execute("DELETE FROM blocks")
        old_files = meta.arrays(store.path)
        for name, file in new.arrays(store.path).items():
            write_checksums(connection, name, _copy(old_files[name], file, meta.count, positions))
        sync_folder(store.path)
        connection.execute("DELETE FROM images WHERE NOT alive")
        connection.execute("DELETE FROM dead")
        connection.executemany(
            "UPDATE images SET position = ? WHERE id = ?", enumerate(ids.tolist())
        )
        write_meta(connection, new)
    for file in old_files.values():  # no others: the next writer may be making new ones already
        file.path.unlink(missing_ok=True)
    store.checkpoint()
    return meta.count - new.count


def _copy(old: ArrayFile, new: ArrayFile, count: int, positions: Ids) -> dict[int, int]:
    """Write the rows at these positions to a new file; return its checksums."""
    source = old.map(count)
    checksums: dict[int, int] = {}
    new.create()
    done = 0
    for rows in _pieces(source, positions):
        # Only the last block can be partly filled, so only its checksum goes on.
        checksums.update(new.append(rows, done, checksums))
        done += len(rows)
    return checksums


def _pieces(source: NDArray[Any], positions: Ids) -> Iterator[NDArray[Any]]:
    step = max(1, _COPY_BYTES // max(1, source.shape[1] * source.itemsize))
    for at in range(0, len(positions), step):
        yield source[positions[at : at + step]]
