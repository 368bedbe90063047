"""Tables of ``index.sqlite``, and the values that describe the whole index."""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.errors import IndexStoreError
from hashlens.index.array_file import ArrayFile

FORMAT_VERSION = 1
APPLICATION_ID = 0x484C4E53  # "HLNS"
FEATURE_TYPES = ("float16", "float32")
DATABASE = "index.sqlite"
ARRAYS = ("codes", "features", "ids")

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE images (id INTEGER PRIMARY KEY, uri TEXT NOT NULL, label TEXT, metadata TEXT, "
    "position INTEGER NOT NULL, alive INTEGER NOT NULL, size INTEGER, mtime_ns INTEGER, "
    "digest BLOB, checksum INTEGER NOT NULL)",
    "CREATE TABLE dead (position INTEGER PRIMARY KEY)",
    "CREATE TABLE blocks (array TEXT NOT NULL, block INTEGER NOT NULL, checksum INTEGER NOT NULL, "
    "PRIMARY KEY (array, block)) WITHOUT ROWID",
)


@dataclass(frozen=True)
class Meta:
    """What holds for the whole index at one commit.

    Attributes
    ----------
    bits : int
        Length of a code.
    feature_dim : int
        Width of a feature vector; 0 where the index holds codes only.
    features : str
        "float16" or "float32".
    fingerprint : str
        Of the encoder; empty where codes come from elsewhere.
    model : str
        Path of the model; empty where unknown.
    generation : int
        Number in the names of the array files; each ``compact`` begins a new one.
    count : int
        Rows of the arrays that are committed.
    next_id : int
        Id that the next image gets.
    commit : int
        Number of this commit.
    """

    bits: int
    feature_dim: int
    features: str
    fingerprint: str
    model: str
    generation: int = 1
    count: int = 0
    next_id: int = 0
    commit: int = 0

    def arrays(self, folder: Path) -> dict[str, ArrayFile]:
        """The array files of this generation, by name."""
        shapes = {
            "codes": (np.dtype("u1"), code_bytes(self.bits)),
            "features": (np.dtype(self.features).newbyteorder("<"), self.feature_dim),
            "ids": (np.dtype("<i8"), 1),
        }
        return {
            name: ArrayFile(folder / f"{name}.{self.generation}", dtype, width)
            for name, (dtype, width) in shapes.items()
        }


def create_tables(connection: sqlite3.Connection, meta: Meta) -> None:
    """Make the tables of a new index; the caller commits."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    for table in TABLES:
        connection.execute(table)
    write_meta(connection, meta)


def write_meta(connection: sqlite3.Connection, meta: Meta) -> None:
    """Store ``meta`` with its checksum."""
    rows = {key: str(value) for key, value in asdict(meta).items()}
    rows["checksum"] = str(_checksum(rows))
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows.items())


def read_meta(connection: sqlite3.Connection, path: Path) -> Meta:
    """Read and check ``meta``.

    Raises
    ------
    IndexStoreError
        If the file is of another kind, of a newer version, or damaged.
    """
    version = _pragma(connection, "user_version")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise IndexStoreError(
            f"{path}: not the database of a Hashlens index; give the folder that "
            "`hashlens index create` made"
        )
    if version != FORMAT_VERSION:
        raise IndexStoreError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}: a newer hashlens "
            "wrote it, so upgrade with `pip install -U hashlens` (or the file is damaged)"
        )
    rows: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta"))
    checksum = rows.pop("checksum", None)
    if checksum != str(_checksum(rows)):
        raise IndexStoreError(
            f"{path}: its description of the index fails its checksum: the file is damaged; "
            "restore the folder from a backup"
        )
    for field in fields(Meta):
        if field.type == "int":
            rows[field.name] = int(rows[field.name])
    return Meta(**rows)


def read_checksums(connection: sqlite3.Connection, array: str) -> dict[int, int]:
    """Checksums of an array's blocks."""
    sql = "SELECT block, checksum FROM blocks WHERE array = ?"
    return dict(connection.execute(sql, (array,)))


def last_checksum(connection: sqlite3.Connection, array: str) -> dict[int, int]:
    """Checksum of an array's last block alone."""
    sql = "SELECT block, checksum FROM blocks WHERE array = ? ORDER BY block DESC LIMIT 1"
    return dict(connection.execute(sql, (array,)))


def write_checksums(connection: sqlite3.Connection, array: str, checksums: dict[int, int]) -> None:
    """Store checksums of blocks."""
    connection.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)",
        [(array, block, checksum) for block, checksum in checksums.items()],
    )


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _checksum(rows: dict[str, Any]) -> int:
    return zlib.crc32(repr(sorted(rows.items())).encode())
