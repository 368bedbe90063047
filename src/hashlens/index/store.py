"""The folder of an index: its database, transactions, a copy, and the search for damage."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from hashlens.errors import IndexStoreError, TimeLimitError, system_reason
from hashlens.files import (
    is_written_aside,
    keeps_locks,
    make_folder,
    remove_abandoned,
    written_aside,
)
from hashlens.index.layout import (
    BLOCK_BYTES,
    DATABASE,
    TABLES,
    UPLOADS,
    ArrayFile,
    Folder,
    Meta,
    create_tables,
    identity,
    pragma,
    read_checksums,
    read_meta,
)
from hashlens.index.rows import row_checksum
from hashlens.index.where import LABEL_FUNCTION, METADATA_FUNCTION, label_value, metadata_value

WRITER_WAIT_SECONDS = 20.0
"""How long a writer waits for another one."""

_CACHE_KIB = 1 << 16  # of rows and their tree, for each connection; SQLite's own 2 MiB are few
HEAD = "head"
_TRIES = 20
NO_LOCKS = "the file system keeps no locks of files, so writers could not be kept apart"
_HEAD_FORMAT = struct.Struct("<QI")


class Transaction(NamedTuple):
    """A connection inside a transaction, and what holds at the commit it sees."""

    connection: sqlite3.Connection
    meta: Meta
    folder: Folder  # that the connection's database is in
    identity: tuple[int, int]  # of the database


@dataclass
class _Link:
    """A connection, the folder that its database is in, and which database it is."""

    connection: sqlite3.Connection
    folder: Folder
    identity: tuple[int, int]
    seen: tuple[int, Meta] | None = None
    """SQLite's number of the last commit of others that it read, and what held there."""


_running = threading.local()
_STEPS = 2000
"""Steps of SQLite's machine between two looks at the clock: well under a millisecond."""


class TimeLimit:
    """A block in which this thread may use a database for so long.

    What takes longer, or is stopped from another thread, ends with ``TimeLimitError``.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = math.inf

    def __enter__(self) -> TimeLimit:
        self._ends = min(self._ends, time.monotonic() + self.seconds)
        _running.limit = self
        return self

    def __exit__(self, *_: object) -> None:
        _running.limit = None

    def stop(self) -> None:
        """End the block's work at once."""
        self._ends = -math.inf

    def is_over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() > self._ends


def _must_stop() -> bool:
    """SQLite's progress handler: whether what runs in this thread has taken too long."""
    limit: TimeLimit | None = getattr(_running, "limit", None)
    return limit is not None and limit.is_over()


class Store:
    """Connections and transactions; safe to use from many threads.

    A folder may be replaced by another one while it is open, which is how a rebuilt index is
    published. A connection and its folder stay together, so that nothing of one index reaches the
    other. Reading goes on with the new one; writing is refused, as ids may mean other images there.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.database = path / DATABASE
        self.read_only = read_only
        self._idle: list[_Link] = []
        self._immutable = False
        self._lock = threading.Lock()
        self._closed = False
        with file_errors(path, _READABLE):
            if not self.database.is_file():
                what = "no such folder" if not path.is_dir() else f"it holds no {DATABASE}"
                raise IndexStoreError(
                    f"{path}: not an index, {what}; make one with `hashlens index create`"
                )
            self._opened = identity(self.database)

    @staticmethod
    def create(path: Path, meta: Meta) -> Store:
        """Make the folder of a new, empty index in one step."""
        with new_folder(path) as aside:
            aside.mkdir()
            folder = Folder(aside)
            write_head(folder, meta.commit)
            if not keeps_locks(aside / HEAD):
                raise IndexStoreError(f"{path}: {NO_LOCKS}; make the index on a local disk")
            connection = sqlite3.connect(aside / DATABASE, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            create_tables(connection, meta)
            connection.execute("COMMIT")
            connection.close()
            for array in meta.arrays(folder).values():
                array.create()
        return Store(path)

    def meta(self) -> Meta:
        """What holds at the last commit."""
        with self.reading() as transaction:
            return transaction.meta

    def reading(self) -> AbstractContextManager[Transaction]:
        """A transaction that sees one commit, whatever is written meanwhile."""
        return self._transaction("BEGIN")

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """The one transaction that may write; committed at the end, rolled back on an error.

        The lock is the database's own, so it ends with the process that holds it.
        """
        if self.read_only:
            raise IndexStoreError(f"{self.path}: opened read-only; open it without read_only")
        with self._transaction("BEGIN IMMEDIATE") as transaction:
            if transaction.identity != self._opened:
                raise IndexStoreError(
                    f"{self.path}: was replaced by another index since it was opened; nothing was "
                    "written: open it again to change the new one"
                )
            yield transaction
            commit = read_meta(transaction.connection, self.database).commit
            transaction.connection.execute("COMMIT")
            with suppress(OSError):  # the commit is done, with one check less
                write_head(transaction.folder, commit)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        with self._connected() as link:
            meta = self._begin(link, begin)
            yield Transaction(link.connection, meta, link.folder, link.identity)
            if link.connection.in_transaction:
                link.connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[_Link]:
        """A connection for one thread; what SQLite and the system raise becomes one clear line."""
        link: _Link | None = None
        try:
            link = self._take()
            yield link
        except BaseException as error:
            if link is not None:
                with suppress(sqlite3.Error):
                    link.connection.rollback()
                link.connection.close()
            if isinstance(error, sqlite3.Error) and "interrupted" in str(error):
                raise TimeLimitError(
                    "the search took longer than it may and was stopped; use fewer or simpler "
                    "conditions"
                ) from error
            if isinstance(error, sqlite3.Error):
                raise IndexStoreError(_explained(error, self.path, self.database)) from error
            with file_errors(self.path):
                raise
        self._give_back(link)

    def _begin(self, link: _Link, begin: str) -> Meta:
        """Begin a transaction; what holds there, read only if others have committed since."""
        connection, seen = link.connection, link.seen
        link.seen = None  # after writing: SQLite's number does not count its own commits
        if begin == "BEGIN" and seen is not None:
            connection.execute(begin)
            if pragma(connection, "data_version") == seen[0]:
                link.seen = seen
                return seen[1]
            connection.execute("COMMIT")
        head = read_head(link.folder)  # before: a writer may commit just after
        connection.execute(begin)
        version, meta = pragma(connection, "data_version"), read_meta(connection, self.database)
        if head is not None and head > meta.commit:  # a log that was cut reads as an earlier commit
            raise IndexStoreError(
                f"{self.database}-wal: cut or missing: the database ends at commit {meta.commit}, "
                f"but commit {head} was made; restore the folder from a backup"
            )
        if begin == "BEGIN":
            link.seen = version, meta
        return meta

    def accept_replacement(self) -> bool:
        """Let the index that stands at the path now be written; whether it is another one."""
        with file_errors(self.path, _READABLE):
            found = identity(self.database)
        before, self._opened = self._opened, found
        return before != found

    def _take(self) -> _Link:
        try:
            now = identity(self.database)
        except OSError:
            with file_errors(self.path, _READABLE):
                raise
        with self._lock:
            if self._closed:
                raise IndexStoreError(f"{self.path}: the index was closed; open it again")
            while self._idle:
                link = self._idle.pop()
                if link.identity == now:
                    return link
                link.connection.close()
        return self._connect()

    def _give_back(self, link: _Link) -> None:
        with self._lock:
            # An immutable connection would never see what others commit.
            if not self._closed and not self._immutable:
                self._idle.append(link)
                return
        link.connection.close()

    def _connect(self) -> _Link:
        for _ in range(_TRIES):
            folder = Folder(self.path)
            before = folder.identity(DATABASE)
            connection = self._new_connection()
            # SQLite opens the log by its name at the first reading.
            connection.execute("PRAGMA schema_version").fetchone()
            if identity(self.database) == before:
                return _Link(connection, folder, before)
            connection.close()  # replaced meanwhile: folder and database may be of two indexes
        raise IndexStoreError(f"{self.path}: is being replaced again and again; try it later")

    def _new_connection(self) -> sqlite3.Connection:
        locks = keeps_locks(self.path / HEAD)  # no file of SQLite's: closing it frees its locks
        allowed = os.access(self.path, os.W_OK) and os.access(self.database, os.W_OK)
        writable = allowed and locks
        log = self.path / f"{DATABASE}-wal"
        if writable:
            mode = "mode=rw"
        elif log.is_file() and log.stat().st_size:
            raise IndexStoreError(
                f"{log}: holds commits that cannot be read while {self.path} "
                f"{'is read-only' if locks else 'keeps no locks'}; wait until its writer has "
                f"closed it, or open it once where it {'is writable' if locks else 'keeps them'}"
            )
        else:
            mode = "mode=ro&immutable=1"
            if not self.read_only:
                remedy = "make the folder writable" if locks else "copy the folder to a local disk"
                raise IndexStoreError(
                    f"{self.path}: {NO_LOCKS if allowed else 'no permission to write there'}; "
                    f"open it with read_only=True, or {remedy}"
                )
        self._immutable = not writable
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self.database.absolute()))}?{mode}",
            uri=True,
            timeout=WRITER_WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.set_progress_handler(_must_stop, _STEPS)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.create_function(METADATA_FUNCTION, 2, metadata_value, deterministic=True)
        connection.create_function(LABEL_FUNCTION, 1, label_value, deterministic=True)
        return connection

    def checkpoint(self) -> None:
        """Move the log into the database, as far as readers allow."""
        with self._connected() as link:
            link.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close all connections; transactions under way end first."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.connection.close()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A name to make a new folder at; it is at its place, whole, when the block ends."""
    require_free(path)
    with file_errors(path):
        make_folder(path.parent)
        remove_abandoned(path.parent)
        with written_aside(path) as aside:
            yield aside


def require_free(path: Path) -> None:
    """Raise ``IndexStoreError`` if a new index cannot be made at a path."""
    if not path.name:
        raise IndexStoreError(
            f"{path}: not a folder that can be made; give the index one of its own, such as "
            "shop.idx"
        )
    with file_errors(path, _READABLE):
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not free:
        raise IndexStoreError(
            f"{path}: exists already; choose another name, or add to it with `hashlens index add`"
        )


_READABLE = "check the name, and that you may read the folder"


@contextmanager
def file_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn an ``OSError`` into an ``IndexStoreError``; by default that of a step that writes."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        if remedy is None:
            missing = isinstance(error, FileNotFoundError)
            remedy = "make its folder" if missing else "free space or allow writing"
            remedy = f"nothing of this step was committed: {remedy}, then run it again"
        raise IndexStoreError(f"{name}: {system_reason(error)}; {remedy}") from error


def read_head(folder: Folder) -> int | None:
    """Number of the last acknowledged commit; None if the file is missing or damaged."""
    try:
        # every transaction reads it: pathlib and Python's file objects would take most of the time
        descriptor = folder.open(HEAD, os.O_RDONLY)
        try:
            data = os.read(descriptor, _HEAD_FORMAT.size + 1)
        finally:
            os.close(descriptor)
        commit, checksum = _HEAD_FORMAT.unpack(data)
    except (OSError, struct.error):
        return None
    return int(commit) if zlib.crc32(data[:8]) == checksum else None


def write_head(folder: Folder, commit: int) -> None:
    """Keep the number of a commit: in place, as a damaged number only means one check less."""
    descriptor = folder.open(HEAD, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, head_bytes(commit))
    finally:
        os.close(descriptor)


def head_bytes(commit: int) -> bytes:
    """What the file says when this commit is the last."""
    number = struct.pack("<Q", commit)
    return number + struct.pack("<I", zlib.crc32(number))


def _explained(error: sqlite3.Error, folder: Path, database: Path) -> str:
    text, kind = str(error), getattr(error, "sqlite_errorname", "")
    if kind.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"{folder}: another process is writing to this index, and did not finish within "
            f"{WRITER_WAIT_SECONDS:.0f} s; wait for it and run this again"
        )
    if kind.startswith("SQLITE_FULL"):
        return f"{database}: no space left; nothing was committed: free space and run it again"
    if kind.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return f"{database}: cannot be written ({text}); allow writing in {folder}"
    if kind.startswith("SQLITE_IOERR"):
        return (
            f"{database}: the system could not read or write it ({text}, {kind}); nothing of this "
            "step was committed: check the space, the quota and the largest allowed size of a file "
            "there, then run it again"
        )
    # a text of the database that is no longer JSON, or no longer UTF-8
    changed = ("malformed JSON", "user-defined function raised", "Could not decode")
    if kind.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or text.startswith(changed):
        return f"{database}: damaged ({text}); restore the folder from a backup"
    return f"{database}: SQLite could not use it ({text}{kind and ', ' + kind}); run it again"


_RESTORE = "restore the folder from a backup"
_ROWS = (
    "SELECT id, position, alive, checksum, uri, label, metadata, size, mtime_ns, digest FROM images"
)


def find_damage(store: Store, progress: Callable[[int], None] | None = None) -> list[str]:
    """Check every byte that counts; return one line for each thing that is damaged."""
    for _ in range(_TRIES):
        with store.reading() as transaction:
            damage = list(_damaged(store.path, transaction, progress))
        if not damage or store.meta().generation == transaction.meta.generation:
            break  # or else `compact` took the files away while they were read
    return damage


def _damaged(
    path: Path, transaction: Transaction, progress: Callable[[int], None] | None
) -> Iterator[str]:
    connection, meta, folder, _ = transaction
    database = path / DATABASE
    if read_head(folder) is None:
        yield (
            f"{path / HEAD}: missing or damaged; no image is lost by it, and the next "
            "change of the index writes it again"
        )
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"{database}: {line}; {_RESTORE}"
    tables = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
    if {sql for (sql,) in tables} != set(TABLES):
        yield f"{database}: its tables are not those of an index; {_RESTORE}"
        return
    ids: list[int] | None = None
    for name, file in meta.arrays(folder).items():
        try:
            rows = file.map(meta.count)
        except IndexStoreError as error:
            yield str(error)
            continue
        for block in file.damaged_blocks(rows, read_checksums(connection, name)):
            yield file.damage(block)
        if name == "ids":
            ids = rows[:, 0].tolist()
        if progress is not None:
            progress(meta.count)
    used = np.zeros(meta.count, np.int64)
    for image_id, position, alive, checksum, *content in connection.execute(_ROWS):
        wrong = checksum != row_checksum(image_id, *content) or alive not in (0, 1)
        if alive and not wrong:
            wrong = not 0 <= position < meta.count
            if not wrong:
                used[position] += 1
                wrong = ids is not None and ids[position] != image_id
        if wrong:
            yield f"{database}: the row of image {image_id} is damaged; {_RESTORE}"
    for (position,) in connection.execute("SELECT position FROM dead"):
        if 0 <= position < meta.count:
            used[position] += 1
    for position in np.flatnonzero(used != 1)[:1].tolist():
        yield (
            f"{database}: position {position} belongs to {used[position]} images, expected 1, "
            f"living or dead; {_RESTORE}"
        )


def copy_index(store: Store, path: Path) -> int:
    """Copy an index to a new folder, checked against its checksums; the number of its images.

    It may be written meanwhile: the copy is of one commit. The folder gets its name when it is
    whole and on the disk.
    """
    require_free(path)
    for _ in range(_TRIES):
        with store.reading() as (connection, meta, folder, _), ExitStack() as opened:
            try:
                files = {
                    name: (file, opened.enter_context(file.open(meta.count)))
                    for name, file in meta.arrays(folder).items()
                }
            except IndexStoreError:
                if meta.generation == store.meta().generation:
                    raise
                continue  # `compact` took the files away meanwhile
            with file_errors(path):
                make_folder(path.parent)
                with written_aside(path) as aside:
                    aside.mkdir()
                    with closing(sqlite3.connect(aside / DATABASE)) as copied:
                        connection.backup(copied)
                    for name, (file, source) in files.items():
                        _copy_array(file, source, meta, read_checksums(connection, name), aside)
                    write_head(Folder(aside), meta.commit)
                    copy_uploads(store.path / UPLOADS, aside / UPLOADS)
            (dead,) = connection.execute("SELECT COUNT(*) FROM dead").fetchone()
            return meta.count - int(dead)
    raise IndexStoreError(f"{store.path}: is compacted again and again; try it later")


def _copy_array(
    file: ArrayFile, source: FileIO, meta: Meta, checksums: dict[int, int], folder: Path
) -> None:
    left, block = meta.count * file.row_bytes, 0
    with (folder / file.name).open("wb") as target:
        while left:
            data = source.read(min(left, BLOCK_BYTES)) or b""
            if len(data) < min(left, BLOCK_BYTES) or zlib.crc32(data) != checksums.get(block):
                raise IndexStoreError(file.damage(block))
            target.write(data)
            left, block = left - len(data), block + 1


def copy_uploads(folder: Path, target: Path) -> None:
    """Pictures that a service was given: each file was whole before a commit named it."""
    if not folder.is_dir():
        return
    target.mkdir(exist_ok=True)
    shutil.copymode(folder, target)
    for entry in os.scandir(folder):
        if entry.is_file() and not is_written_aside(entry.name):
            shutil.copy2(entry.path, target / entry.name)
