"""Thumbnails of indexed images, and of nothing else on the disk; made once and kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hashlens.data.image import RawImage, decoding_bytes
from hashlens.data.opening import fetch, load_image, open_table
from hashlens.errors import HashlensError
from hashlens.files import Row, changed_ns, content_digest, is_remote, parse_row, uri_path
from hashlens.service.limits import MEBI, Limits, Room
from hashlens.service.schemas import Refused

log = logging.getLogger("hashlens.service")

_FILE_BYTES = 256 * MEBI
_SHOWN_BY_BROWSERS = {f"image/{kind}" for kind in ("jpeg", "png", "gif", "webp", "avif", "bmp")}
_SMALL = 96  # longer side in pixels; such images are kept as they are, without loss


class Thumbnail(NamedTuple):
    """Encoded bytes, their media type, and a tag that changes with the image's file."""

    data: bytes
    media_type: str
    etag: str


class Thumbnails:
    """Makes and keeps thumbnails, the most recently used ones; safe in many threads."""

    def __init__(self, limits: Limits, room: Room | None = None) -> None:
        self._room = room or Room(limits.all_decoding_bytes)
        self._side = limits.thumbnail_side
        self._capacity = limits.thumbnail_cache_bytes
        self._kept: OrderedDict[str, Thumbnail] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, uri: str, digest: bytes | None = None) -> Thumbnail:
        """The thumbnail of an image of the index."""
        place = _find(uri, digest)
        version = uri  # names the image and the state of its file
        if place is not None:
            now = place.status
            version += f"\n{changed_ns(now)}\n{now.st_size}\n{now.st_ino}"
        with self._lock:
            found = self._kept.get(version)
            if found is not None:
                self._kept.move_to_end(version)
                return found
        made = self._make(place, uri, f'"{hashlib.sha256(version.encode()).hexdigest()[:24]}"')
        with self._lock:
            if version not in self._kept:
                self._kept[version] = made
                self._bytes += len(made.data)
            while self._bytes > self._capacity and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped.data)
        return made

    def original(self, uri: str, digest: bytes | None = None) -> Thumbnail:
        """The image's own bytes, or a PNG of it where browsers do not show its kind."""
        place = _find(uri, digest)
        try:
            data = _read(place, uri)
            kind = _media_type(data) if isinstance(data, bytes) else None
            if kind is None or not isinstance(data, bytes):
                buffer, kind = io.BytesIO(), "image/png"
                load_image(data).save(buffer, "PNG")
                data = buffer.getvalue()
        except (HashlensError, OSError, ValueError):
            raise _gone(uri) from None
        return Thumbnail(data, kind, "")

    def _make(self, place: _Place | None, uri: str, etag: str) -> Thumbnail:
        try:
            raw = _read(place, uri)
            with self._room.take(_decoding_bytes(raw, self._side)):
                image = load_image(raw, size_hint=self._side)
                is_small = max(image.size) <= _SMALL
                image.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
        except (HashlensError, OSError, ValueError):
            raise _gone(uri) from None
        buffer = io.BytesIO()
        if is_small:
            image.save(buffer, "PNG", optimize=True)
            return Thumbnail(buffer.getvalue(), "image/png", etag)
        image.save(buffer, "WEBP", quality=82, method=3)
        return Thumbnail(buffer.getvalue(), "image/webp", etag)


def _media_type(data: bytes) -> str | None:
    """The kind of an image file that every browser shows; None for others."""
    with Image.open(io.BytesIO(data)) as image:
        kind = Image.MIME.get(image.format or "")
    return kind if kind in _SHOWN_BY_BROWSERS else None


def _decoding_bytes(raw: RawImage, side: int) -> int:
    """Most memory that decoding takes; more than there is where the header cannot be read."""
    if isinstance(raw, np.ndarray | Image.Image):
        return 0
    if isinstance(raw, bytes):
        with suppress(Exception), Image.open(io.BytesIO(raw)) as image:  # raises anything
            return decoding_bytes(image, raw, side)
    return sys.maxsize


def _gone(uri: str = "") -> Refused:
    if is_remote(uri):
        scheme = uri.partition("://")[0]
        return Refused(404, f"the image is at a remote {scheme}:// URI that cannot be read here")
    return Refused(404, "the image's file cannot be read any more")


class _Place(NamedTuple):
    """Where an image's bytes are."""

    path: Path  # the image's file, or the file of which it is a row
    status: os.stat_result  # of that file now
    row: Row | None  # where the file holds many images
    digest: bytes | None  # of the bytes that the file must have; None where its path is its own


def _find(uri: str, digest: bytes | None) -> _Place | None:
    """The file of an image, or a refusal; None for an image that is in no file.

    Indexed paths are absolute, so a path that differs from its real path leads through a symbolic
    link. The link may be older than the index, or lead elsewhere since: the content tells.
    """
    if not uri:  # an image from memory
        raise _gone()
    row = None if os.path.lexists(uri) else parse_row(uri)
    if is_remote(uri) or (row is not None and not row.is_in_file):
        return None
    path = uri_path(uri if row is None else row.table)
    if not path.is_absolute():  # a name of the index's maker, such as of a vector: in no file
        raise _gone()
    linked = os.path.realpath(path) != str(path)
    if linked and (row is not None or digest is None or os.path.abspath(path) != str(path)):
        log.warning("no thumbnail of %s: it leads through a link; index the real path", path)
        raise _gone()
    try:
        status = os.stat(path) if linked else os.lstat(path)
    except OSError:
        raise _gone() from None
    if not stat.S_ISREG(status.st_mode):
        raise _gone()
    return _Place(path, status, row, digest if linked else None)


def _read(place: _Place | None, uri: str) -> RawImage:
    """What an image is decoded from."""
    if place is None:
        return fetch(uri).raw
    if place.row is None:
        return _read_file(place)
    table = open_table(str(place.path), place.row.column)
    if table.status is None or not os.path.samestat(table.status, place.status):
        raise _gone()  # another table came there since it was found
    raw = table.read(place.row.row)
    if not isinstance(raw, Path):
        return raw
    named = _find(os.path.abspath(raw), None)  # a file that a row names is looked up as all are
    if named is None or named.row is not None:
        raise _gone()
    return _read_file(named)


def _read_file(place: _Place) -> bytes:
    """Bytes of an image's own file, if it is the one that was found."""
    follow = 0 if place.digest else os.O_NOFOLLOW
    try:
        with open(os.open(place.path, os.O_RDONLY | os.O_NONBLOCK | follow), "rb") as file:
            data = file.read(_FILE_BYTES + 1)
            own = place.digest is not None or os.path.realpath(place.path) == str(place.path)
            if not own or not os.path.samestat(os.fstat(file.fileno()), place.status):
                raise _gone()  # another file came there since it was found
    except OSError:
        raise _gone() from None
    if len(data) > _FILE_BYTES:
        raise _gone()
    if place.digest is not None and content_digest(data) != place.digest:
        log.warning(
            "no thumbnail of %s: it leads through a link to a file that was not indexed; "
            "`hashlens index sync` indexes what is there now",
            place.path,
        )
        raise _gone()
    return data
