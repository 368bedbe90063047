"""What one client may ask of the service, how much work may wait, and the key for writing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hashlens.errors import InvalidInputError

MEBI = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Bounds of the service; a request past one is refused in one line.

    Attributes
    ----------
    upload_bytes : int
        Size of one uploaded image.
    body_bytes : int
        Size of one request, all its parts together.
    pixels : int
        Width times height of an image, read from its header before decoding.
    k : int
        Results a query.
    batch : int
        Queries in one batch request.
    json_bytes : int
        Size of a filter or of an image's metadata, as JSON.
    queue : int
        Queries and adds that run or wait; past it the answer is 503.
    bodies : int
        Requests whose body is being received at the same time; past it the answer is 503.
    encode_batch : int
        Images encoded together.
    encode_wait_ms : float
        How long the first image of a batch waits for others.
    body_seconds : float
        Time a client has to send a request's body.
    header_seconds : float
        Time a client has to send a request's headers.
    header_bytes : int
        Size of a request's headers.
    thumbnail_side : int
        Longer side of a thumbnail in pixels.
    thumbnail_cache_bytes : int
        Memory for thumbnails that are kept.
    """

    upload_bytes: int = 16 * MEBI
    body_bytes: int = 32 * MEBI
    pixels: int = 50_000_000
    k: int = 1000
    batch: int = 32
    json_bytes: int = 16 * 1024
    queue: int = 64
    bodies: int = 64
    encode_batch: int = 16
    encode_wait_ms: float = 3.0
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    header_bytes: int = 16 * 1024
    thumbnail_side: int = 320
    thumbnail_cache_bytes: int = 64 * MEBI


KEY_VARIABLE = "HASHLENS_API_KEY"
_KEY_LENGTH = 16


def read_key(path: Path | None = None) -> str | None:
    """The key in a file, else in the environment's ``HASHLENS_API_KEY``, else None."""
    if path is not None:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: expected a file with the API key ({error})") from None
    else:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return None
    if len(key) < _KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInputError(
            f"API key: expected at least {_KEY_LENGTH} printable ASCII characters without spaces, "
            "for example from: openssl rand -hex 32"
        )
    return key
