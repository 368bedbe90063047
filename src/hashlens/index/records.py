"""What an index knows of each image, and how a row of the database is made from it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from hashlens.errors import InvalidInputError

Metadata = Mapping[str, Any]


class Record(NamedTuple):
    """An image of an index.

    Attributes
    ----------
    id : int
        Stays the same for as long as the image is in the index; never given again.
    uri : str
        Absolute path or URI; empty where the image came from memory.
    label : str or None
        Class name.
    metadata : dict
        What the user gave, as JSON values.
    """

    id: int
    uri: str
    label: str | None
    metadata: dict[str, Any]


class Hit(NamedTuple):
    """An image found by a search.

    Attributes
    ----------
    id, uri, label, metadata
        As in ``Record``.
    hamming : int or None
        Bits that differ from the query's code.
    euclidean : float or None
        Distance of features; None for mode ``bcs``.
    """

    id: int
    uri: str
    label: str | None
    metadata: dict[str, Any]
    hamming: int | None
    euclidean: float | None


# A circle is met as a RecursionError, so that watching for one need not cost time.
_OPTIONS: dict[str, Any] = {
    "allow_nan": False,
    "check_circular": False,
    "separators": (",", ":"),
}
_encode = json.JSONEncoder(ensure_ascii=False, **_OPTIONS).encode
_encode_ascii = json.JSONEncoder(**_OPTIONS).encode


def store_text(text: str | None) -> str | bytes | None:
    """Text as SQLite takes it: UTF-8 has no lone surrogates, so such text is kept as bytes."""
    if text is None:
        return None
    text = str(text)  # NumPy's text has another ``repr``, which checksums are made of
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def load_text(stored: str | bytes | None) -> str | None:
    """The inverse of ``store_text``."""
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored


def store_metadata(metadata: Metadata | None, name: str) -> str | None:
    """Metadata as JSON text, None where there is none.

    Parameters
    ----------
    metadata : mapping or None
        String keys, JSON values.
    name : str
        The image, for an error message.

    Raises
    ------
    InvalidInputError
        If it cannot be written as JSON and read back.
    """
    if not metadata:
        return None
    if not isinstance(metadata, Mapping) or {*map(type, metadata)} != {str}:
        raise InvalidInputError(f"{name}: metadata: expected a mapping with text keys")
    try:
        text = _encode(metadata if type(metadata) is dict else dict(metadata))
        if text.isascii():
            return text
        text.encode()
    except UnicodeEncodeError:
        return _encode_ascii(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{name}: metadata: expected text, whole or finite numbers, true, false, null, lists "
            f"and mappings of these ({error})"
        ) from None
    return text


def row_checksum(*values: str | bytes | int | None) -> int:
    """CRC-32 over a row's id, URI, label, metadata and file state."""
    return zlib.crc32(repr(values).encode())


def to_record(row: tuple[Any, ...]) -> Record:
    """A record from the columns (id, uri, label, metadata)."""
    image_id, uri, label, metadata = row
    return Record(
        image_id, load_text(uri) or "", load_text(label), json.loads(metadata) if metadata else {}
    )
