"""How an image's file looks: size and time first, then its content."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

_DIGEST_BYTES = 16


class FileState(NamedTuple):
    """How a file looked when its image was encoded.

    Attributes
    ----------
    size : int
        In bytes.
    mtime_ns : int
        Time of last change.
    digest : bytes
        BLAKE2b of the content, 16 bytes.
    """

    size: int
    mtime_ns: int
    digest: bytes


NO_FILE = (None, None, None)


def file_uri(path: str | os.PathLike[str]) -> str:
    """Absolute path of a file, or a ``file:`` URI where its name is not UTF-8."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Path(absolute).as_uri()
    return absolute


def local_path(uri: str) -> str:
    """The inverse of ``file_uri``."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(urlsplit(uri).path))
    return uri


def content_digest(data: bytes) -> bytes:
    """The digest that ``FileState`` keeps of a file with this content."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def file_state(path: str | os.PathLike[str]) -> FileState | None:
    """How a file looks now; None where there is no regular file that can be read.

    Size and time are taken before the content is read, so that a change meanwhile is noticed
    the next time.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    except (OSError, ValueError):
        return None
    return FileState(status.st_size, status.st_mtime_ns, digest.digest())
