"""Every change of an index: arrays are synced before the database commits what they hold."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import count, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.files import FileState, Uri, compared, parse_row, path_uri, row_uri
from hashlens.index.layout import ARRAYS, Folder, Meta, read_checksums, write_meta
from hashlens.index.rows import (
    check_encoded,
    check_lengths,
    row_checksum,
    store_metadata,
    store_text,
)
from hashlens.index.store import Store
from hashlens.types import AddReport, Codes, EncodedBatch, Ids, ImageInput, Metadata, Skipped

if TYPE_CHECKING:
    from hashlens.index.protocol import Index

_INSERT = "INSERT INTO images VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?)"
IMAGES_PER_COMMIT = 1024
SECONDS_PER_COMMIT = 5.0
"""While images are encoded, what is done is committed after so many, or so long."""

_COPY_BYTES = 1 << 26
_CONTENT = "uri, label, metadata, size, mtime_ns, digest"
_NO_FILE = (None, None, None)


class NewImage(NamedTuple):
    """An image to add, with texts as they are stored."""

    uri: str | bytes
    label: str | bytes | None
    metadata: str | bytes | None
    file: FileState | None = None


class GivenRows(NamedTuple):
    """What is given with images to add: a value for each, or None where nothing is."""

    uris: Sequence[str]
    labels: Sequence[Any] | None = None
    metadata: Sequence[Metadata | None] | None = None
    files: Sequence[FileState | None] | None = None

    def stored(self) -> Iterator[NewImage]:
        """As rows; each is checked when it is taken."""
        columns = (repeat(None) if values is None else values for values in self)
        for uri, label, metadata, file in zip(*columns, strict=False):
            if not isinstance(uri, str):
                raise InvalidInputError(f"uris: expected text, got {uri!r}")
            text, words = store_text(uri) or "", store_metadata(metadata, uri)
            yield NewImage(text, store_label(label), words, file)


def encode_images(
    index: Index,
    images: Iterable[ImageInput],
    labels: Sequence[Any] | None,
    metadata: Sequence[Metadata | None] | None,
    given_uris: Sequence[str] | None,
    *,
    progress: Callable[[int], None] | None,
    strict: bool,
) -> AddReport:
    """Encode images and add them, in pieces that are worth a commit each; see ``Index.add``."""
    encoder = index.require_encoder()
    if isinstance(images, str | os.PathLike | bytes):
        raise InvalidInputError(
            f"images: expected a list, got one image, {images!r:.80}; put it into a list"
        )
    if not isinstance(images, Iterable):
        raise InvalidInputError(f"images: expected a list of images, got {images!r:.80}")
    given = {"labels": labels, "metadata": metadata, "uris": given_uris}
    if isinstance(images, Sized):
        check_lengths(len(images), **given)
    uris: list[str] = []

    def named() -> Iterator[ImageInput]:
        for image in images:
            for name, values in given.items():
                if values is not None and len(values) <= len(uris):
                    raise InvalidInputError(
                        f"{name}: expected one per image, got {len(values)} for more images"
                    )
            uris.append(uri_of(image) if given_uris is None else given_uris[len(uris)])
            yield image

    ids: list[Ids] = [np.zeros(0, np.int64)]
    skipped: list[Skipped] = []
    for batches in commits(encoder.encode_batches(named(), strict=strict)):
        at = [place for batch in batches for place in batch.positions.tolist()]
        unread = [image for batch in batches for image in batch.skipped]
        if at:
            rows = GivenRows(
                [uris[i] for i in at],
                None if labels is None else [labels[i] for i in at],
                None if metadata is None else [metadata[i] for i in at],
                [file for batch in batches for file in batch.files],
            )
            codes = np.concatenate([batch.codes for batch in batches])
            features = np.concatenate([batch.features for batch in batches])
            ids.append(index.add_rows(codes, features, rows))
        skipped += unread
        if progress is not None:
            progress(len(at) + len(unread))
    return AddReport(np.concatenate(ids), tuple(skipped))


def add_images(store: Store, codes: Any, features: Any, rows: GivenRows) -> Ids:
    """Check encoded images, and add them in one commit; return their ids."""
    codes, stored = check_encoded(store.meta(), codes, features)
    check_lengths(len(codes), uris=rows.uris, labels=rows.labels, metadata=rows.metadata)
    return append_images(store, codes, stored, rows.stored())


def append_images(
    store: Store, codes: Codes, features: NDArray[Any], images: Iterable[NewImage]
) -> Ids:
    """Add encoded images in one commit; return their ids."""
    if not len(codes):
        return np.zeros(0, np.int64)
    with store.writing() as (connection, meta, folder, _):
        ids = np.arange(meta.next_id, meta.next_id + len(codes), dtype=np.int64)
        connection.executemany(_INSERT, _rows(images, meta.next_id, meta.count))
        _append_arrays(folder, connection, meta, codes, features, ids)
        _commit(connection, meta, count=meta.count + len(ids), next_id=meta.next_id + len(ids))
    return ids


def update_image(
    store: Store, image_id: int, values: dict[str, Any], encoded: EncodedBatch | None
) -> None:
    """Change columns of an image, and put another picture in its place, in one commit."""
    if encoded is not None:
        codes, features = check_encoded(store.meta(), encoded.codes, encoded.features)
        replace_images(store, np.array([image_id]), codes, features, encoded.files, values)
    elif values:
        update_records(store, [(image_id, values)])


def replace_images(
    store: Store,
    ids: Ids,
    codes: Codes,
    features: NDArray[Any],
    files: Sequence[FileState | None],
    values: dict[str, Any] | None = None,
) -> None:
    """Give images new codes and features, what is known of their files, and ``values``."""
    with store.writing() as (connection, meta, folder, _):
        _bury(connection, ids.tolist())
        _append_arrays(folder, connection, meta, codes, features, ids)
        for place, (image_id, file) in enumerate(zip(ids.tolist(), files, strict=True)):
            sql = "UPDATE images SET position = ? WHERE id = ?"
            connection.execute(sql, (meta.count + place, image_id))
            state = dict(zip(FileState._fields, file or _NO_FILE, strict=True))
            _set(connection, image_id, state | (values or {}))
        _commit(connection, meta, count=meta.count + len(ids))


def remove_images(store: Store, ids: Ids) -> None:
    """Mark images as dead, in one commit."""
    with store.writing() as (connection, meta, *_):
        _bury(connection, ids.tolist())
        removed = [(image_id,) for image_id in ids.tolist()]
        connection.executemany("UPDATE images SET alive = 0 WHERE id = ?", removed)
        _commit(connection, meta)


def update_records(
    store: Store, changes: Iterable[tuple[int, dict[str, Any]]], **meta_changes: Any
) -> None:
    """Set columns (uri, label, metadata, file state) of images, and ``meta``, in one commit."""
    with store.writing() as (connection, meta, *_):
        for image_id, values in changes:
            _set(connection, image_id, values)
        _commit(connection, meta, **meta_changes)


def drop_stale_files(folder: Folder, generation: int) -> None:
    """Delete array files of other generations: a killed ``compact`` left them."""
    for name in folder.names():
        array, _, number = name.partition(".")
        if array in ARRAYS and number.isdigit() and number != str(generation):
            folder.remove(name)


def _rows(
    images: Iterable[NewImage], first_id: int, first_position: int
) -> Iterator[tuple[Any, ...]]:
    places = zip(count(first_id), count(first_position), images, strict=False)
    for image_id, position, (*texts, file) in places:
        state = file or _NO_FILE
        yield (image_id, *texts, position, *state, row_checksum(image_id, *texts, *state))


def _append_arrays(
    folder: Folder,
    connection: sqlite3.Connection,
    meta: Meta,
    codes: Codes,
    features: NDArray[Any],
    ids: Ids,
) -> None:
    drop_stale_files(folder, meta.generation)
    given = {"codes": codes, "features": features, "ids": ids[:, None]}
    for name, file in meta.arrays(folder).items():
        file.append(connection, given[name], meta.count)


def _living(connection: sqlite3.Connection, ids: Iterable[int], columns: str) -> list[Any]:
    """Columns of living images, or an error that names the ids which are not there."""
    sql = f"SELECT {columns} FROM images WHERE id = ? AND alive"
    found = {image_id: connection.execute(sql, (image_id,)).fetchone() for image_id in ids}
    missing = [image_id for image_id, row in found.items() if row is None]
    if missing:
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InvalidInputError(f"ids: no image in the index with id {named}; nothing was changed")
    return list(found.values())


def _bury(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Mark the positions of living images as dead."""
    positions = _living(connection, ids, "position")
    connection.executemany("INSERT INTO dead VALUES (?)", positions)


def _set(connection: sqlite3.Connection, image_id: int, values: dict[str, Any]) -> None:
    """Set columns of a living image's row, and its checksum."""
    (held,) = _living(connection, [image_id], _CONTENT)
    row = dict(zip(_CONTENT.split(", "), held, strict=True)) | values
    columns = ", ".join(f"{name} = ?" for name in row)
    connection.execute(
        f"UPDATE images SET {columns}, checksum = ? WHERE id = ?",
        (*row.values(), row_checksum(image_id, *row.values()), image_id),
    )


def _commit(connection: sqlite3.Connection, meta: Meta, **changes: Any) -> None:
    write_meta(connection, replace(meta, commit=meta.commit + 1, **changes))


def commits(batches: Iterable[EncodedBatch]) -> Iterator[list[EncodedBatch]]:
    """Gather batches until enough images or seconds have come together.

    When the batches end with an error, or the caller is interrupted, what was gathered comes
    out before the error goes on.
    """
    gathered: list[EncodedBatch] = []
    images, began = 0, time.monotonic()
    try:
        for batch in batches:
            gathered.append(batch)
            images += len(batch.positions)
            if images >= IMAGES_PER_COMMIT or time.monotonic() - began >= SECONDS_PER_COMMIT:
                ready, gathered = gathered, []
                yield ready
                images, began = 0, time.monotonic()
    except GeneratorExit:
        raise
    except BaseException:
        if gathered:
            yield gathered
        raise
    if gathered:
        yield gathered


def store_label(label: Any) -> str | bytes | None:
    """A label as it is stored: text; whole numbers become text."""
    if label is None:
        return None
    if isinstance(label, str):
        return store_text(compared(str(label)))
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return str(int(label))
    raise InvalidInputError(f"label: expected a class name, got {label!r}")


def uri_of(image: ImageInput) -> str:
    """Where an image can be found again: an absolute path or a URI; empty for one in memory."""
    if isinstance(image, Uri):
        return image
    if not isinstance(image, str | os.PathLike):
        return ""
    name = os.fspath(image)
    if isinstance(image, str) and not os.path.exists(name):
        row = parse_row(name)
        if row is None or not row.is_in_file or not os.path.exists(row.table):
            return name
        return row_uri(path_uri(row.table), row.row, row.column)
    return path_uri(name)


def compact(store: Store) -> int:
    """Drop dead rows, and order the rest by id; return the number of rows dropped.

    The files of the next generation are written and synced next to the old ones. The commit that
    names them switches all readers at once; a kill before it leaves the old generation intact,
    and the new files are dropped by the next writer.
    """
    with store.writing() as (connection, meta, folder, _):
        rows = list(connection.execute("SELECT id, position FROM images WHERE alive ORDER BY id"))
        ids, positions = np.array(rows, np.int64).reshape(-1, 2).T
        if np.array_equal(positions, np.arange(meta.count)):
            return 0
        drop_stale_files(folder, meta.generation)
        new = replace(meta, generation=meta.generation + 1, count=len(ids), commit=meta.commit + 1)
        old_files = meta.arrays(folder)
        for name, file in new.arrays(folder).items():
            source = old_files[name].map(meta.count)
            old_files[name].require_intact(source, read_checksums(connection, name))
            connection.execute("DELETE FROM blocks WHERE array = ?", (name,))
            file.create()
            step = max(1, _COPY_BYTES // max(1, file.row_bytes))
            for at in range(0, len(positions), step):
                file.append(connection, source[positions[at : at + step]], at)
        folder.sync()
        connection.execute("DELETE FROM images WHERE NOT alive")
        connection.execute("DELETE FROM dead")
        connection.executemany(
            "UPDATE images SET position = ? WHERE id = ?", enumerate(ids.tolist())
        )
        write_meta(connection, new)
    for file in old_files.values():  # no others: the next writer may be making new ones already
        folder.remove(file.name)
    store.checkpoint()
    return meta.count - new.count
