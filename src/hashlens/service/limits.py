"""What one client may ask of the service, how much work may wait, and the key for writing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hashlens.errors import InvalidInputError

MEBI = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Bounds of the service; a request past one is refused in one line."""

    # One request
    upload_bytes: int = 16 * MEBI  # of one image
    body_bytes: int = 32 * MEBI  # of all parts together
    body_seconds: float = 30.0  # that a client has to send the body
    header_bytes: int = 16 * 1024
    header_seconds: float = 10.0  # that a client has to send the headers
    pixels: int = 50_000_000  # width times height, read from the header before decoding
    decoding_bytes: int = 400 * MEBI  # of memory to decode it, estimated from the header
    text_characters: int = 500  # of one description in words
    k: int = 1000  # results per query
    batch: int = 32  # queries in one batch request
    json_bytes: int = 16 * 1024  # of a filter, or of an image's metadata
    search_seconds: float = 10.0  # that the conditions of a search may take
    send_seconds: float = 30.0  # that a client may leave an answer unread
    # All requests together; past these two the answer is 503
    queue: int = 64  # queries and adds that run or wait
    bodies: int = 64  # bodies that arrive at the same time
    # Decoding and encoding
    encode_batch: int = 16  # images, or texts, encoded together
    decoders: int = 0  # pictures decoded at the same time; 0: as many as cores
    all_decoding_bytes: int = 800 * MEBI  # of memory for all that are decoded; others wait
    # Thumbnails
    thumbnail_side: int = 320  # longer side, in pixels
    thumbnail_cache_bytes: int = 64 * MEBI  # of memory for those that are kept


class Room:
    """Memory for decoding: who would go past it waits until others are done."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """A block that uses so many bytes."""
        count = min(count, self._size)
        with self._changed:
            self._changed.wait_for(lambda: count <= self._left)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()


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
