"""Files: their names as text, digests of their content, and writing them whole or not at all.

Images are named by absolute paths, by ``file:`` URIs where a path is not valid UTF-8, or as rows
of a table: ``/photos/x.parquet#7``, ``digits#3``, ``hub:OWNER/NAME#train#12``; in a tar file by the
byte at which the image's sample begins.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

try:
    import fcntl
except ImportError:  # Windows has none, and its locks are part of every file system
    fcntl = None  # type: ignore[assignment]


class Uri(str):
    """The name of an image as sources write it: absolute, so that an index stores it as it is."""

    __slots__ = ()


def compared(text: str) -> str:
    """A label or word in the form (NFC) that all are compared in; paths stay as they are.

    Some systems write é as one character, others as e and an accent.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def path_uri(path: str | os.PathLike[str]) -> Uri:
    """URI of a file: its absolute path, or a ``file:`` URI where the name is not valid UTF-8.

    A ``#`` in a file name needs no escape: only names that end in ``.parquet#ROW``,
    ``.npy#ROW`` or ``.tar#ROW`` are rows.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Uri(Path(absolute).as_uri())
    return Uri(absolute)


_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://.*", re.DOTALL | re.IGNORECASE)


def is_remote(uri: str) -> bool:
    """Whether a URI names something behind a file system, such as ``s3://bucket/photo.jpg``."""
    return _REMOTE.fullmatch(uri) is not None


def uri_path(uri: str) -> Path:
    """The file that a path or a ``file:`` URI names."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))
    return Path(os.path.expanduser(uri))


class Row(NamedTuple):
    """One image of a table."""

    # path or URI of a .parquet, .npy or .tar file, ``digits``, ``hub:NAME#SPLIT``, ``memory:HEX``
    table: str
    row: int  # from 0 on
    column: str | None = None  # column of the images, where it is not the one that their names tell

    @property
    def is_in_file(self) -> bool:
        """Whether the table is a file, of parquet, vectors or a tar."""
        return self.table.lower().endswith((".parquet", ".npy", ".tar"))


_ROW = re.compile(
    r"(?P<table>digits|memory:[0-9a-f]+|hub:.+#[^#]+|.+\.(?i:parquet|npy|tar)(?:#(?P<column>[^#/]+))?)"
    r"#(?P<row>[0-9]+)",
    re.ASCII | re.DOTALL,
)


def row_uri(table: str, row: int, column: str | None = None) -> Uri:
    """URI of a row of a table."""
    return Uri(f"{table}#{row}" if column is None else f"{table}#{column}#{row}")


def parse_row(uri: str) -> Row | None:
    """The row that a URI names; None where it names something else, such as a file."""
    match = _ROW.fullmatch(uri)
    if match is None:
        return None
    column = match["column"]
    table = match["table"] if column is None else match["table"].removesuffix(f"#{column}")
    return Row(table, int(match["row"]), column)


_DIGEST_BYTES = 16


class FileState(NamedTuple):
    """How a file looked when its image was encoded."""

    size: int  # in bytes
    mtime_ns: int  # when it was last changed, see ``changed_ns``
    digest: bytes  # digest of the content, 16 bytes


def content_digest(data: bytes) -> bytes:
    """BLAKE2b of a file's content, 16 bytes."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def file_state(path: str | os.PathLike[str]) -> FileState | None:
    """How a file looks now; None where there is no regular file that can be read.

    Size and time are taken before the content is read, so that a change during the reading is
    noticed the next time.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    except (OSError, ValueError):
        return None
    return FileState(status.st_size, changed_ns(status), digest.digest())


def changed_ns(status: os.stat_result) -> int:
    """A number for when a file was last changed, its content, name or times; to compare only.

    It is the system's own time of the change. Where the file claims a later one, because a clock
    was set back or runs ahead elsewhere, it is the sum of both, so that either is noticed.
    """
    content, change = status.st_mtime_ns, status.st_ctime_ns
    return change if change >= content else change + content


def replace_file(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a file whole or not at all: a reader, or a crash, finds the old or the new content.

    ``content`` is bytes, text (UTF-8), or a function that writes the file at the path it is
    given, such as ``picture.save``.
    """
    with written_aside(path) as aside:
        if callable(content):
            content(aside)
        else:
            aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A free name in the same folder to write a file or a folder at.

    It becomes ``path``, synced, when the block ends; after an error it is removed.
    """
    writer = f"{_HOST}-{os.getpid()}-{threading.get_native_id()}"
    aside = path.with_name(f".new-{writer}-{path.name[-60:]}")  # not too long; ends alike
    _remove(aside)  # of a process that had the same numbers and was killed
    try:
        yield aside
        move(aside, path)
    except BaseException as error:
        if isinstance(error, OSError) and str(error.filename).startswith(str(aside)):
            error.filename = str(path)  # the name that the user knows
        with suppress(OSError):
            _remove(aside)
        raise


_HOST = hashlib.blake2b(os.fsencode(platform.node()), digest_size=4).hexdigest()
_ASIDE = re.compile(rf"\.new-{_HOST}-(?P<process>[0-9]+)-[0-9]+-.+", re.DOTALL)


def move(source: Path, target: Path) -> None:
    """Sync a file or a folder to the disk, then rename it to ``target`` in one step.

    A file there is replaced; a folder there must be empty.
    """
    for each in reversed([source, *source.rglob("*")]):
        if each.is_dir():
            sync_directory(each)
        else:
            _sync_one(each)
    os.replace(source, target)
    sync_directory(target.parent)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def keeps_locks(path: Path) -> bool:
    """Whether the file system of a file keeps locks; a network's may be mounted without them."""
    if fcntl is None or not path.is_file():
        return True
    with open(path, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing, and their names durable."""
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_directory(made.parent)


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable, where the system knows how."""
    if os.name == "nt":
        return
    try:
        _sync_one(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def is_written_aside(name: str) -> bool:
    """Whether a file or folder of this name is one that is not whole yet."""
    return name.startswith(".new-")


def remove_abandoned(folder: Path) -> None:
    """Remove from a folder what killed processes of this machine left half written."""
    with suppress(OSError):
        for path in list(folder.glob(".new-*")):
            match = _ASIDE.fullmatch(path.name)
            if match is not None and not _is_running(int(match["process"])):
                _remove(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
