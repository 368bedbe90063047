"""Uploaded bytes become an image, or a refusal in one line.

The format is decided by the bytes, never by a file name or a content type; the pixel count is
read from the header, and what makes a small file costly is counted, before anything is decoded.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from typing import Any

from fastapi import UploadFile
from PIL import Image

from hashlens.data.images import UnreadableImageError, load_image
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.structure import find_excess

FORMATS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "AVIF": "avif",
}
"""Formats that are decoded, with the extension they are stored under."""

_DEPTH = 32


async def read_upload(upload: UploadFile, limits: Limits, name: str = "image") -> bytes:
    """All bytes of one uploaded image.

    Raises
    ------
    Refused
        413 if it is larger than ``limits.upload_bytes``, 422 if it is empty.
    """
    size = upload.size or 0
    if size > limits.upload_bytes:
        raise Refused(
            413, f"{name}: {size:,} bytes; at most {limits.upload_bytes:,} bytes are accepted"
        )
    data = await upload.read()
    if not data:
        raise Refused(422, f"{name}: expected an image file, got no bytes")
    return data


def check_header(data: bytes, limits: Limits, name: str = "image") -> str:
    """The format of an image, without decoding it.

    Raises
    ------
    Refused
        422 if it is no image of a known format, 413 if it has too many pixels or parts.
    """
    if excess := find_excess(data):
        raise Refused(413, f"{name}: {excess}; save the picture anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                width, height, kind = image.width, image.height, image.format or ""
                codec = image.tile[0][0] if image.tile else ""
    except Image.DecompressionBombError:
        raise Refused(413, f"{name}: too many pixels; at most {limits.pixels:,}") from None
    except Exception:  # decoders raise anything on hostile bytes
        known = ", ".join(FORMATS)
        raise Refused(422, f"{name}: not an image; expected one of {known}") from None
    if width * height > limits.pixels:
        raise Refused(
            413,
            f"{name}: {width} x {height} is {width * height:,} pixels; "
            f"at most {limits.pixels:,} are accepted",
        )
    if codec == "bmp_rle":  # decoded in Python, a pixel at a time
        raise Refused(422, f"{name}: a BMP with run-length coding; save the picture as PNG")
    if min(width, height) < 1:
        raise Refused(422, f"{name}: the image is empty ({width} x {height} pixels)")
    return kind


def decode_upload(
    data: bytes, limits: Limits, name: str = "image", *, size_hint: int | None = None
) -> Image.Image:
    """Decode an upload, upright, as grey or RGB.

    Parameters
    ----------
    data : bytes
        The file's content.
    limits : Limits
        The most pixels accepted.
    name : str
        What to call the image in a refusal.
    size_hint : int, optional
        As for ``load_image``.

    Raises
    ------
    Refused
        413 or 422, in one line.
    """
    kind = check_header(data, limits, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_image(data, size_hint=size_hint)
    except UnreadableImageError as error:
        raise Refused(422, f"{name}: the {kind} cannot be read: {error.reason}") from None


def parse_object(text: str | None, limits: Limits, name: str) -> dict[str, Any]:
    """A JSON object from a form field; nothing is an empty one.

    Raises
    ------
    Refused
        413 if it is too long, 422 if it is not a JSON object of plain values.
    """
    if text is None or not text.strip():
        return {}
    if len(text.encode("utf-8", "surrogatepass")) > limits.json_bytes:
        raise Refused(413, f"{name}: at most {limits.json_bytes:,} bytes of JSON are accepted")
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise Refused(422, f'{name}: expected a JSON object such as {{"brand": "x"}}') from None
    if not isinstance(value, dict):
        raise Refused(422, f"{name}: expected a JSON object, got {type(value).__name__}")
    if _deeper(value, _DEPTH):
        raise Refused(422, f"{name}: expected at most {_DEPTH} levels of lists and objects")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(422, f"{name}: expected valid Unicode text") from None
    return value


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):  # such as 1e400, which no answer could hold
        raise ValueError(text)
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other more than so many times."""
    layer = [value]
    for _ in range(levels):
        held = (one.values() if isinstance(one, dict) else one for one in layer)
        layer = [one for many in held for one in many if isinstance(one, dict | list)]
    return bool(layer)
