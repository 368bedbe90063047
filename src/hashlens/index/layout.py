"""One append-only array on disk: rows of bytes, and a checksum for each block of them."""

from __future__ import annotations

import mmap
import os
import sqlite3
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes
from hashlens.errors import IndexStoreError
from hashlens.files import sync_directory

FORMAT_VERSION = 1
APPLICATION_ID = 0x484C4E53  # "HLNS"
FEATURE_TYPES = ("float16", "float32")
DATABASE = "index.sqlite"
UPLOADS = "uploads"  # pictures that a service was given, by their content
ARRAYS = ("codes", "features", "ids")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would change the ends of lines

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE images (id INTEGER PRIMARY KEY, uri TEXT NOT NULL, label TEXT, metadata TEXT, "
    "position INTEGER NOT NULL, alive INTEGER NOT NULL, size INTEGER, mtime_ns INTEGER, "
    "digest BLOB, checksum INTEGER NOT NULL)",
    "CREATE TABLE dead (position INTEGER PRIMARY KEY)",
    "CREATE TABLE blocks (array TEXT NOT NULL, block INTEGER NOT NULL, checksum INTEGER NOT NULL, "
    "PRIMARY KEY (array, block)) WITHOUT ROWID",
)


class Folder:
    """The folder of an index, held open: its files stay its own when it is moved or replaced.

    Where the system cannot open a file relative to a folder, its path is used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._place = os.fspath(path)  # that names start from
        if os.open in os.supports_dir_fd and os.listdir in os.supports_fd:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            self._place = ""
            weakref.finalize(self, os.close, self._descriptor)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file, as ``os.open`` gives it."""
        try:
            return os.open(os.path.join(self._place, name), flags, 0o666, dir_fd=self._descriptor)
        except OSError as error:
            error.filename = os.fspath(self.path / name)  # the name that the user knows
            raise

    def identity(self, name: str) -> tuple[int, int]:
        """What tells a file from another one under its name."""
        return identity(os.path.join(self._place, name), self._descriptor)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._place, name), dir_fd=self._descriptor)

    def names(self) -> list[str]:
        """Names of the files in it."""
        return os.listdir(self.path if self._descriptor is None else self._descriptor)

    def sync(self) -> None:
        """Make the names in it durable."""
        if self._descriptor is None:
            sync_directory(self.path)
        else:
            os.fsync(self._descriptor)


def identity(path: str | Path, folder: int | None = None) -> tuple[int, int]:
    """What tells a file from another one that has its path later: device and inode."""
    found = os.stat(path, dir_fd=folder)
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class Meta:
    """What is true of the index at one commit."""

    bits: int
    feature_dim: int  # 0: codes only
    features: str  # "float16" or "float32"
    fingerprint: str  # of the encoder; empty where codes come from elsewhere
    model: str  # path; empty where unknown
    generation: int = 1  # in the names of the array files; each `compact` begins a new one
    count: int = 0  # rows of the arrays that are committed
    next_id: int = 0  # that the next image gets
    commit: int = 0  # number of this commit

    def arrays(self, folder: Folder) -> dict[str, ArrayFile]:
        """The array files of this generation, by name."""
        shapes = {
            "codes": (np.dtype("u1"), code_bytes(self.bits)),
            "features": (np.dtype(self.features).newbyteorder("<"), self.feature_dim),
            "ids": (np.dtype("<i8"), 1),
        }
        return {
            name: ArrayFile(folder, f"{name}.{self.generation}", dtype, width)
            for name, (dtype, width) in shapes.items()
        }


_NUMBERS = frozenset(field.name for field in fields(Meta) if field.type == "int")


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
    """Read and check ``meta``."""
    version = pragma(connection, "user_version")
    if pragma(connection, "application_id") != APPLICATION_ID:
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
    for key in _NUMBERS:
        rows[key] = int(rows[key])
    return Meta(**rows)


def read_checksums(connection: sqlite3.Connection, array: str, first: int = 0) -> dict[int, int]:
    """Checksums of an array's blocks, from the first one named on."""
    sql = "SELECT block, checksum FROM blocks WHERE array = ? AND block >= ?"
    return dict(connection.execute(sql, (array, first)))


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    """What SQLite says of a database or a connection."""
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _checksum(rows: dict[str, Any]) -> int:
    return zlib.crc32(repr(sorted(rows.items())).encode())


BLOCK_BYTES = 1 << 20
"""Bytes under one checksum."""

_RESTORE = "restore the folder from a backup, or make the index again with `hashlens index create`"


@dataclass(frozen=True)
class ArrayFile:
    """A file of fixed-size rows; the database says how many of them are committed."""

    folder: Folder
    name: str
    dtype: np.dtype[Any]
    width: int

    @property
    def path(self) -> Path:
        """Its path when the folder was opened."""
        return self.folder.path / self.name

    @cached_property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return int(self.dtype.itemsize) * self.width

    def create(self) -> None:
        """Make the file, empty; an older one is replaced."""
        descriptor = self.folder.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def append(self, connection: sqlite3.Connection, rows: NDArray[Any], count: int) -> None:
        """Write rows behind the first ``count``, sync them to the disk, and store checksums.

        What comes after them was left by a writer that died, and is dropped.
        """
        data = np.ascontiguousarray(rows, self.dtype).view(np.uint8).reshape(-1).data
        start = count * self.row_bytes
        with self.open(count, os.O_RDWR) as file:
            file.truncate(start)
            file.seek(start)
            written = 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)  # give the space back
                raise
        array = self.name.partition(".")[0]
        last = read_checksums(connection, array, start // BLOCK_BYTES)
        checksums = _extended(data, start, last).items()
        connection.executemany(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", ((array, *each) for each in checksums)
        )

    def map(self, count: int) -> NDArray[Any]:
        """The first ``count`` rows, memory-mapped and read-only, shape (count, width).

        They stay readable when the file is deleted.
        """
        with self.open(count) as file:
            return self.map_of(file, count)

    def map_of(self, file: FileIO, count: int, *, scattered: bool = False) -> NDArray[Any]:
        """As ``map``, of the open file.

        ``scattered`` rows are read here and there, so that reading ahead would be waste.
        """
        length = count * self.row_bytes
        self.require_size(file, count)
        if length == 0:
            return np.empty((count, self.width), self.dtype)
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        if scattered and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, self.dtype).reshape(count, self.width)

    def read_added(
        self,
        file: FileIO,
        first: int,
        count: int,
        last: Mapping[int, int],
        stored: Mapping[int, int],
    ) -> NDArray[Any]:
        """Rows ``first`` to ``count`` of the open file, checked.

        ``last`` has the checksum of the block in which the rows before these end, and ``stored``
        those that the database has of all blocks from there on.
        """
        self.require_size(file, count)
        start, length = first * self.row_bytes, (count - first) * self.row_bytes
        file.seek(start)
        data = file.read(length) or b""
        for block, checksum in _extended(memoryview(data), start, last).items():
            if len(data) < length or stored.get(block) != checksum:
                raise IndexStoreError(self.damage(block))
        return np.frombuffer(data, self.dtype).reshape(count - first, self.width)

    def damaged_blocks(self, rows: NDArray[Any], checksums: Mapping[int, int]) -> Iterator[int]:
        """Read mapped rows from the first on; the blocks that differ from their checksum."""
        found = _extended(rows.reshape(-1).view(np.uint8).data, 0, {})
        return (block for block, checksum in found.items() if checksums.get(block) != checksum)

    def require_intact(self, rows: NDArray[Any], checksums: Mapping[int, int]) -> None:
        """Raise ``IndexStoreError`` that names the first damaged block, if there is one."""
        for block in self.damaged_blocks(rows, checksums):
            raise IndexStoreError(self.damage(block))

    def open(self, count: int, flags: int = os.O_RDONLY) -> FileIO:
        """The file, open and unbuffered, if it holds ``count`` rows or more."""
        try:
            descriptor = self.folder.open(self.name, flags | _BINARY)
            file = FileIO(descriptor, "rb" if flags == os.O_RDONLY else "r+b")
        except FileNotFoundError:
            raise IndexStoreError(f"{self.path}: the file is missing; {_RESTORE}") from None
        try:
            self.require_size(file, count)
        except IndexStoreError:
            file.close()
            raise
        return file

    def require_size(self, file: FileIO, count: int) -> None:
        """Raise ``IndexStoreError`` if the open file was cut: reading on would end the process."""
        size = os.fstat(file.fileno()).st_size
        if size < count * self.row_bytes:
            raise IndexStoreError(
                f"{self.path}: expected {count * self.row_bytes} bytes or more, got {size}: "
                f"the file was cut; {_RESTORE}"
            )

    def damage(self, block: int) -> str:
        """A line that says that a block is damaged, and what to do."""
        at = block * BLOCK_BYTES
        return (
            f"{self.path}: block {block} (from byte {at}) differs from its checksum in "
            f"index.sqlite; {_RESTORE}"
        )


def _extended(data: Any, start: int, checksums: Mapping[int, int]) -> dict[int, int]:
    """Checksums of the blocks that ``data`` touches when it is written at byte ``start``."""
    result: dict[int, int] = {}
    at = 0
    while at < len(data):
        block, inside = divmod(start + at, BLOCK_BYTES)
        piece = data[at : at + BLOCK_BYTES - inside]
        result[block] = zlib.crc32(piece, checksums[block] if inside else 0)
        at += len(piece)
    return result
