"""How an image's file looks: size and time first, then its content."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

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
