"""A copy of an index as it is at one commit, while it is written and searched."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from hashlens.errors import IndexStoreError
from hashlens.files import is_written_aside, make_folder, written_aside
from hashlens.index.layout import BLOCK_BYTES, DATABASE, UPLOADS, ArrayFile, Folder, read_checksums
from hashlens.index.store import Store, Transaction, file_errors, require_free, write_head

_TRIES = 5


def copy_index(store: Store, path: Path) -> int:
    """Copy an index to a new folder, checked against its checksums; the number of its images.

    The database is copied inside a transaction, and of each array the rows of the same commit. The
    folder gets its name when it is whole and on the disk.
    """
    require_free(path)
    for left in reversed(range(_TRIES)):
        generation = store.meta().generation
        with store.database_errors(), store.reading() as transaction, ExitStack() as opened:
            meta = transaction.meta
            try:
                files = {
                    name: (file, opened.enter_context(file.open(meta.count)))
                    for name, file in meta.arrays(transaction.folder).items()
                }
            except IndexStoreError:
                if not left or generation == store.meta().generation:
                    raise
                continue  # `compact` took the files away meanwhile
            with file_errors(path):
                make_folder(path.parent)
                with written_aside(path) as aside:
                    aside.mkdir()
                    _copy(transaction, files, aside)
                    copy_uploads(store.path / UPLOADS, aside / UPLOADS)
            (images,) = transaction.connection.execute(
                "SELECT COUNT(*) FROM images WHERE alive"
            ).fetchone()
            return int(images)
    raise IndexStoreError(f"{store.path}: is compacted again and again; try it later")


def _copy(
    transaction: Transaction, files: dict[str, tuple[ArrayFile, FileIO]], aside: Path
) -> None:
    connection, meta, _, _ = transaction
    copied = sqlite3.connect(aside / DATABASE)
    try:
        connection.backup(copied)
    finally:
        copied.close()
    for name, (file, source) in files.items():
        checksums = read_checksums(connection, name)
        left, block = meta.count * file.row_bytes, 0
        with (aside / file.name).open("wb") as target:
            while left:
                data = source.read(min(left, BLOCK_BYTES)) or b""
                if len(data) < min(left, BLOCK_BYTES) or zlib.crc32(data) != checksums.get(block):
                    raise IndexStoreError(file.damage(block))
                target.write(data)
                left, block = left - len(data), block + 1
    write_head(Folder(aside), meta.commit)


def copy_uploads(folder: Path, target: Path) -> None:
    """Pictures that a service was given: each file was whole before a commit named it."""
    if not folder.is_dir():
        return
    target.mkdir(exist_ok=True)
    shutil.copymode(folder, target)
    for entry in os.scandir(folder):
        if entry.is_file() and not is_written_aside(entry.name):
            shutil.copy2(entry.path, target / entry.name)
