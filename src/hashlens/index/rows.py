"""Texts, metadata and records as the database stores them, and checks of what callers give."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_bytes
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.features import check_features
from hashlens.index.layout import Meta
from hashlens.types import Codes, EncoderLike, Ids, Metadata, Record, is_id

# A circular mapping raises RecursionError anyway; checking for one takes time.
_OPTIONS: dict[str, Any] = {"allow_nan": False, "check_circular": False, "separators": (",", ":")}
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
    try:
        return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored
    except UnicodeDecodeError as error:
        raise IndexStoreError(
            f"index.sqlite: a text is damaged ({error}); `hashlens index verify` names the image: "
            "restore the folder from a backup"
        ) from error


def store_metadata(metadata: Metadata | None, name: str) -> str | None:
    """Metadata as JSON text, None where there is none."""
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
            f"{name}: metadata: expected text, finite numbers, true, false, null, lists "
            f"and mappings of these ({error})"
        ) from None
    return text


def row_checksum(*values: str | bytes | int | None) -> int:
    """CRC-32 over a row's id, URI, label, metadata and file state."""
    return zlib.crc32(repr(values).encode())


ROW = "id, uri, label, metadata, size, mtime_ns, digest, checksum"
"""Columns that belong to an image's checksum, and the checksum."""


def require_intact_rows(rows: Sequence[tuple[Any, ...]]) -> None:
    """Raise ``IndexStoreError`` if rows that begin with the columns ``ROW`` were changed."""
    for row in rows:  # `row_checksum`, written out: a call for each row takes as long again
        if zlib.crc32(repr(row[:7]).encode()) != row[7]:
            raise IndexStoreError(
                f"index.sqlite: the row of image {row[0]} is damaged; `hashlens index verify` "
                "names all that is: restore the folder from a backup"
            )


def record_columns(rows: Sequence[tuple[Any, ...]]) -> tuple[Iterable[Any], ...]:
    """Ids, URIs, labels and metadata of rows that begin with the columns ``ROW``; checked."""
    require_intact_rows(rows)
    # column by column, and parsed together: a call for each text would take most of the time
    ids, uris, labels, texts = list(zip(*rows, strict=True))[:4] if rows else ((),) * 4
    metadata = json.loads(f"[{','.join([text or '{}' for text in texts])}]")
    return ids, map(load_text, uris), map(load_text, labels), metadata


def to_records(rows: Sequence[tuple[Any, ...]]) -> list[Record]:
    """Records from rows that begin with the columns ``ROW``; they are checked."""
    return [*map(Record._make, zip(*record_columns(rows), strict=True))]


def list_ids(ids: Any) -> list[int]:
    """One id, or several of any kind, as a list of whole numbers."""
    try:
        listed = [ids] if is_id(ids) else ids.tolist() if hasattr(ids, "tolist") else list(ids)
        right = isinstance(listed, list) and all(map(is_id, listed))
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InvalidInputError(
            f"ids: expected whole numbers in one dimension, such as [3, 17], got {ids!r:.80}"
        )
    return [int(image_id) for image_id in listed]


def check_ids(ids: Any) -> Ids:
    """Ids to change as an array, each once."""
    listed = list_ids(ids)
    if listed and max(listed) >= 2**63:
        raise InvalidInputError(f"ids: expected whole numbers below 2**63, got {max(listed)}")
    if len(set(listed)) != len(listed):
        raise InvalidInputError("ids: expected each id once, got one twice")
    return np.array(listed, np.int64)


def check_width(codes: Any, bits: int) -> Codes:
    """Packed codes of an index's width."""
    checked = check_codes(codes)
    if checked.shape[1] != code_bytes(bits):
        raise InvalidInputError(
            f"codes: expected {code_bytes(bits)} bytes for the index's {bits} bits, got "
            f"{checked.shape[1]}; use the model that the index was made with"
        )
    return checked


def check_encoded(meta: Meta, codes: Any, features: Any) -> tuple[Codes, NDArray[Any]]:
    """Codes and features of an index's widths, features rounded to its stored type."""
    codes = check_width(codes, meta.bits)
    if meta.feature_dim == 0:
        features = np.zeros((len(codes), 0), np.float32)
    array = check_features(features)
    expected = (len(codes), meta.feature_dim)
    if array.shape != expected:
        raise InvalidInputError(f"features: expected shape {expected}, got {array.shape}")
    with np.errstate(over="ignore"):
        stored = array.astype(meta.features, copy=False)
    if not np.isfinite(stored).all():
        row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
        raise InvalidInputError(
            f"features: row {row} holds NaN, infinity or a value too large for {meta.features}; "
            "make the index with features='float32' if the values are meant"
        )
    return codes, stored


def check_lengths(count: int, **given: Sequence[Any] | None) -> None:
    """Raise ``InvalidInputError`` if a sequence does not hold one value per image."""
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise InvalidInputError(f"{name}: expected {count}, one per image, got {len(values)}")


def require_same_model(path: Path, meta: Meta, encoder: EncoderLike) -> None:
    """Raise ``IndexStoreError`` if the encoder is not the one whose codes the index holds."""
    width = encoder.feature_dim if meta.feature_dim else 0  # an index of codes alone fits too
    if (encoder.bits, width) != (meta.bits, meta.feature_dim):
        raise IndexStoreError(
            f"{path}: holds codes of {meta.bits} bits and features of {meta.feature_dim} values, "
            f"but the model gives {encoder.bits} and {encoder.feature_dim}; use the index's own "
            "model, or make a new index"
        )
    if meta.fingerprint and encoder.fingerprint != meta.fingerprint:
        raise IndexStoreError(
            f"{path}: made with model {meta.fingerprint[:12]}, but this one is "
            f"{encoder.fingerprint[:12]}, whose codes do not compare; use the index's own model"
            f"{f' ({meta.model})' if meta.model else ''}, or make a new index"
        )
