"""Thumbnails of indexed images, made once and kept; of nothing else on the disk."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from hashlens.data.images import load_image
from hashlens.data.uris import uri_path
from hashlens.errors import HashlensError
from hashlens.service.errors import Refused
from hashlens.service.limits import MEBI, Limits

log = logging.getLogger("hashlens.service")

_FILE_BYTES = 256 * MEBI
_SMALL = 96  # pixels a side; such images are kept as they are, without loss


class Thumbnail(NamedTuple):
    """Encoded bytes, their media type, and a tag that changes with the image's file."""

    data: bytes
    media_type: str
    etag: str


class Thumbnails:
    """Makes and keeps thumbnails, least recently used leave first; safe in many threads."""

    def __init__(self, limits: Limits) -> None:
        self._side = limits.thumbnail_side
        self._capacity = limits.thumbnail_cache_bytes
        self._kept: OrderedDict[str, Thumbnail] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, uri: str) -> Thumbnail:
        """The thumbnail of an image of the index.

        Parameters
        ----------
        uri : str
            As stored in the index; never a client's own text.

        Raises
        ------
        Refused
            404 if the image cannot be read any more, or its path leads elsewhere now.
        """
        version = _version(uri)
        with self._lock:
            found = self._kept.get(version)
            if found is not None:
                self._kept.move_to_end(version)
                return found
        made = self._make(uri, f'"{hashlib.sha256(version.encode()).hexdigest()[:24]}"')
        with self._lock:
            if version not in self._kept:
                self._kept[version] = made
                self._bytes += len(made.data)
            while self._bytes > self._capacity and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped.data)
        return made

    def _make(self, uri: str, etag: str) -> Thumbnail:
        try:
            image = load_image(_read(uri), size_hint=self._side)
        except (HashlensError, OSError, ValueError):
            raise _gone() from None
        buffer = io.BytesIO()
        if max(image.size) <= _SMALL:
            image.save(buffer, "PNG", optimize=True)
            return Thumbnail(buffer.getvalue(), "image/png", etag)
        image.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=82, method=3)
        return Thumbnail(buffer.getvalue(), "image/webp", etag)


def _gone() -> Refused:
    return Refused(404, "the image's file cannot be read any more")


def _file_part(uri: str) -> Path | None:
    """The file a URI names, whole or as one of its rows; None for an image that is in no file."""
    if uri.startswith(("digits#", "hub:")):
        return None
    path, mark, row = uri.rpartition("#")
    is_row = bool(mark) and row.isdecimal() and path.lower().endswith(".parquet")
    return uri_path(path if is_row and not os.path.lexists(uri) else uri)


def _check_place(path: Path) -> os.stat_result:
    """Refuse a path that is not plain, or that leads elsewhere than when it was indexed.

    Indexed paths are absolute and resolved, so a path is its own resolution unless a part of it
    has become a symbolic link since.
    """
    if os.path.realpath(path) != str(path):
        log.warning("no thumbnail of %s: it leads through a link; index the real path", path)
        raise _gone()
    try:
        status = os.lstat(path)
    except OSError:
        raise _gone() from None
    if not stat.S_ISREG(status.st_mode):
        raise _gone()
    return status


def _version(uri: str) -> str:
    """Names an image and the state of its file."""
    path = _file_part(uri)
    if path is None:
        return uri
    status = _check_place(path)
    return f"{uri}\n{status.st_mtime_ns}\n{status.st_size}\n{status.st_ino}"


def _read(uri: str) -> str | bytes:
    """Bytes of a plain file, opened without following links; the URI itself otherwise."""
    path = _file_part(uri)
    if path is None or path != uri_path(uri):
        return uri
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        data = file.read(_FILE_BYTES + 1)
    if len(data) > _FILE_BYTES:
        raise _gone()
    return data
