"""What clients send becomes an image, a text, a vector or a filter, or a refusal in one line.

An image's format is decided by the bytes, never by a file name or a content type; its pixel count
is read from the header, and what makes a small file costly is counted, before it is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi import UploadFile
from PIL import Image, JpegImagePlugin

from hashlens.data.image import decoding_bytes
from hashlens.data.opening import load_image
from hashlens.data.preprocessing import VectorInput
from hashlens.errors import ImageError
from hashlens.files import remove_abandoned, replace_file, sync_directory, uri_path
from hashlens.index.layout import UPLOADS
from hashlens.service.limits import MEBI, Limits
from hashlens.service.schemas import Refused
from hashlens.types import Features, Text

log = logging.getLogger("hashlens.service")

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}
"""Formats that are decoded, with the extension they are stored under."""


async def read_upload(upload: UploadFile, limits: Limits, name: str = "image") -> bytes:
    """All bytes of one uploaded image."""
    size = upload.size or 0
    if size > limits.upload_bytes:
        raise Refused(413, f"{name}: {size:,} bytes; at most {limits.upload_bytes:,} are accepted")
    data = await upload.read()
    if not data:
        raise Refused(422, f"{name}: expected an image file, got no bytes")
    return data


class Header(NamedTuple):
    """What the first bytes of an image say."""

    kind: str
    decoding_bytes: int  # most memory that decoding takes


def check_header(
    data: bytes, limits: Limits, name: str = "image", *, size_hint: int | None = None
) -> Header:
    """Format and cost of an image, without decoding it; a refusal of one that costs too much."""
    if excess := find_excess(data):
        raise Refused(413, f"{name}: {excess}; save the picture again")
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image,
        ):
            width, height, kind = image.width, image.height, image.format or ""
            codec = image.tile[0][0] if image.tile else ""
            memory = decoding_bytes(image, data, size_hint)
    except Image.DecompressionBombError:
        raise Refused(413, f"{name}: too many pixels; at most {limits.pixels:,}") from None
    except ImageError as error:
        raise Refused(422, f"{name}: {error.reason}") from None
    except Exception:  # decoders raise anything on hostile bytes
        known = ", ".join(FORMATS)
        raise Refused(422, f"{name}: not an image; expected one of {known}") from None
    if width * height > limits.pixels:
        raise Refused(
            413,
            f"{name}: {width} x {height} is {width * height:,} pixels; "
            f"at most {limits.pixels:,} are accepted",
        )
    if codec == "bmp_rle":  # decoded in Python, pixel by pixel
        raise Refused(422, f"{name}: a BMP with run-length coding; save the picture as PNG")
    if min(width, height) < 1:
        raise Refused(422, f"{name}: the image is empty ({width} x {height} pixels)")
    if memory > limits.decoding_bytes:
        raise Refused(
            413,
            f"{name}: decoding this {kind} of {width} x {height} pixels takes {memory // MEBI} "
            f"MiB; at most {limits.decoding_bytes // MEBI} MiB are accepted: save it smaller, or "
            "as a JPEG",
        )
    return Header(kind, memory)


def decode_upload(
    data: bytes, header: Header, name: str = "image", *, size_hint: int | None = None
) -> Image.Image:
    """Decode an upload whose header was checked, upright, as grey or RGB."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return load_image(data, size_hint=size_hint)
    except ImageError as error:
        raise Refused(422, f"{name}: the {header.kind} cannot be read: {error.reason}") from None


_DEPTH = 32
_CONDITIONS, _VALUES = 16, 256
NUMBER_BYTES, CHARACTER_BYTES = 40, 12
"""Of one number of a vector, or one character of a text, as JSON, at most."""


def parse_where(value: Any, limits: Limits) -> dict[str, Any]:
    """A filter, as JSON or from a JSON body, with a bounded number of keys and values."""
    text = value if isinstance(value, str) else json.dumps(value)
    where = parse_object(text, limits.json_bytes, "where")
    count = sum(len(value) if isinstance(value, list | dict) else 1 for value in where.values())
    if len(where) > _CONDITIONS or count > _VALUES:
        raise Refused(
            422,
            f"where: {len(where)} keys with {count} values; at most {_CONDITIONS} keys and "
            f"{_VALUES} values are accepted",
        )
    return where


def parse_text(value: Any, limits: Limits, name: str = "text") -> Text:
    """A description in words, of a bounded length."""
    words, most = value.strip() if isinstance(value, str) else "", limits.text_characters
    if not words or words != words.encode("utf-8", "replace").decode():
        raise Refused(422, f"{name}: expected words, such as red shoes")
    if len(words) > most:
        raise Refused(413, f"{name}: {len(words):,} characters; at most {most} are accepted")
    return Text(words)


def parse_vector(value: Any, taken: VectorInput | None, name: str = "vector") -> Features:
    """A vector (1, width) of what the model takes, from JSON, a JSON body or raw float32."""
    if taken is None:
        raise Refused(422, f"{name}: this service has no model that takes vectors")
    width = taken.width
    if isinstance(value, bytes):
        if len(value) != 4 * width:
            raise Refused(
                422,
                f"{name}: expected {width} little-endian float32 ({4 * width} bytes), got "
                f"{len(value)} bytes",
            )
        found = taken.normalise(np.frombuffer(value, "<f4")[None])
    else:
        expected = f"a JSON list of {width} numbers"
        if isinstance(value, str):
            value = _load(value, NUMBER_BYTES * width, name, expected)
        try:
            if not isinstance(value, list) or {type(each) for each in value} - {int, float}:
                raise ValueError(value)
            found = taken.normalise(np.array(value, np.float64).reshape(1, width))
        except (ValueError, OverflowError):
            raise Refused(422, f"{name}: expected {expected}") from None
    for reason in taken.faults(found).values():
        raise Refused(422, f"{name}: {reason}")
    return found


def parse_object(text: str | bytes | None, most: int, name: str) -> dict[str, Any]:
    """An object from at most so many bytes of JSON; nothing is an empty one."""
    if text is None or not text.strip():
        return {}
    value = _load(text, most, name, 'a JSON object such as {"key": "value"}')
    if not isinstance(value, dict):
        raise Refused(422, f"{name}: expected a JSON object, got {type(value).__name__}")
    if _deeper(value, _DEPTH):
        raise Refused(422, f"{name}: expected at most {_DEPTH} levels of lists and objects")
    try:  # NaN, 1e400 and half a surrogate pair are read, and no answer could hold them
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise Refused(422, f"{name}: expected finite numbers and valid Unicode text") from None
    return value


def _load(text: str | bytes, most: int, name: str, expected: str) -> Any:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(data) > most:
        raise Refused(413, f"{name}: at most {most:,} bytes of JSON are accepted")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(422, f"{name}: expected {expected}") from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more deeply than so many levels."""
    layer = [value]
    for _ in range(levels):
        held = (one.values() if isinstance(one, dict) else one for one in layer)
        layer = [one for many in held for one in many if isinstance(one, dict | list)]
    return bool(layer)


_UPLOAD = re.compile(r"[0-9a-f]{64}\.[a-z]+")


class UploadStore:
    """Files ``uploads/<sha256>.<extension>`` of one index; a client's file name plays no part."""

    def __init__(self, index: Path) -> None:
        self._folder = index.resolve() / UPLOADS
        remove_abandoned(self._folder)

    def find(self, uri: str) -> str:
        """Where an image is: an upload is in this index, wherever the index was when it came."""
        path = uri_path(uri)
        if path.parent.name != UPLOADS or not _UPLOAD.fullmatch(path.name) or path.exists():
            return uri
        return str(self._folder / path.name)

    def keep(self, data: bytes) -> str:
        """Store an image durably; returns its URI."""
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            # cameras write MPO: a JPEG with further pictures behind it
            extension = FORMATS.get(image.format or "", FORMATS["JPEG"])
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.{extension}"
        try:
            self._folder.mkdir(exist_ok=True)
            # what is there may be from a process that was killed before it synced
            sync_directory(self._folder.parent)
            if path.is_file() and path.stat().st_size == len(data):
                sync_directory(self._folder)
            else:
                replace_file(path, data)
        except OSError as error:
            log.error("%s: an image could not be stored: %s", self._folder, error)
            raise Refused(503, "the image cannot be stored now", Retry_After="5") from None
        return str(path)


SCANS = 100
"""Passes of a progressive JPEG over all its pixels; encoders write about 10."""
SEGMENTS = 1_000
"""Of a JPEG before its first scan: a profile of 16 MiB takes 250."""
CHUNKS = 10_000
"""Of a PNG: 16 MiB are about 2,000. Of a GIF, its blocks before the first image."""

_SCAN = 0xFFDA


def find_excess(data: bytes) -> str | None:
    """What a file has too many of, in a few words; None for an ordinary one."""
    if data.startswith(b"\xff\xd8"):
        # inside compressed data 0xFF is always followed by 0, so this counts scans
        if data.count(_SCAN.to_bytes(2)) > SCANS:
            return f"more than {SCANS} scans"
        return _more_than(SEGMENTS, "segments", _jpeg_segments(data))
    if data.startswith(b"\x89PNG"):
        return _more_than(CHUNKS, "chunks", _png_chunks(data))
    if data.startswith(b"GIF8"):
        return _more_than(CHUNKS, "blocks", _gif_blocks(data))
    return None


def _more_than(count: int, what: str, parts: Iterator[int]) -> str | None:
    over = next(islice(parts, count, None), None) is not None
    return f"more than {count:,} {what}" if over else None


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Position of each step that Pillow takes up to the first scan; each byte of padding is one."""
    at = 2
    while at + 4 <= len(data):
        yield at
        marker = int.from_bytes(data[at : at + 2])
        if marker == _SCAN:
            return
        if data[at] != 0xFF or marker == 0xFFFF:
            at += 1
            continue
        _, _, has_length = JpegImagePlugin.MARKER.get(marker, ("", "", None))
        at += 2 + (int.from_bytes(data[at + 2 : at + 4]) if has_length else 0)


def _png_chunks(data: bytes) -> Iterator[int]:
    """Position of each chunk."""
    at = 8
    while at < len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4])


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Position of each block and sub-block up to the first image."""
    if len(data) < 13:
        return
    at = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
    while at < len(data) and data[at] not in b",;":
        yield at
        if data[at] != ord("!"):
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1
