"""From images, labels and metadata to rows of an index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from hashlens.errors import InvalidInputError
from hashlens.file_uris import path_uri, uri_path
from hashlens.index.checks import check_encoded, check_lengths
from hashlens.index.files import FileState, file_state
from hashlens.index.records import Metadata, store_metadata, store_text
from hashlens.index.store import Store
from hashlens.index.writing import NewImage, append_images
from hashlens.protocols import EncodedBatch, Encoder, Ids, ImageInput, Skipped

IMAGES_A_COMMIT = 1024
SECONDS_A_COMMIT = 5.0
"""While images are encoded, what is done is committed after so many, or so long."""


class AddReport(NamedTuple):
    """What an ``add`` did.

    Attributes
    ----------
    ids : ndarray of shape (m,), int64
        Of the images that were added, in order.
    skipped : tuple of Skipped
        Images that could not be read.
    """

    ids: Ids
    skipped: tuple[Skipped, ...]


def add_images(
    store: Store,
    encoder: Encoder,
    images: Iterable[ImageInput],
    labels: Sequence[Any] | None,
    metadata: Sequence[Metadata | None] | None,
    progress: Callable[[int], None] | None,
    strict: bool,
) -> AddReport:
    """Encode and add images, in several commits; see ``HashIndex.add``."""
    if isinstance(images, str | os.PathLike | bytes):
        raise InvalidInputError(
            f"images: expected a list, got one image, {images!r:.80}; put it into a list"
        )
    if isinstance(images, Sized):
        check_lengths(len(images), labels=labels, metadata=metadata)
    meta = store.meta()
    ids: list[Ids] = []
    skipped: list[Skipped] = []
    seen: list[tuple[str, FileState | None]] = []

    def named() -> Iterator[ImageInput]:
        for image in images:
            for name, values in (("labels", labels), ("metadata", metadata)):
                if values is not None and len(values) <= len(seen):
                    raise InvalidInputError(
                        f"{name}: expected one an image, got {len(values)} for more images"
                    )
            uri = uri_of(image)
            seen.append((uri, file_state(uri_path(uri)) if uri else None))
            yield image

    for batches in commits(encoder.encode_batches(named(), strict=strict)):
        for batch in batches:
            skipped += batch.skipped
        at = np.concatenate([batch.positions for batch in batches]).tolist()
        if at:
            codes, features = check_encoded(
                meta,
                np.concatenate([batch.codes for batch in batches]),
                np.concatenate([batch.features for batch in batches]),
            )
            rows = new_images(
                len(at),
                [seen[i][0] for i in at],
                None if labels is None else [labels[i] for i in at],
                None if metadata is None else [metadata[i] for i in at],
                [seen[i][1] for i in at],
            )
            ids.append(append_images(store, codes, features, rows))
        if progress is not None:
            progress(sum(len(batch.positions) + len(batch.skipped) for batch in batches))
    return AddReport(np.concatenate([np.zeros(0, np.int64), *ids]), tuple(skipped))


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
            if images >= IMAGES_A_COMMIT or time.monotonic() - began >= SECONDS_A_COMMIT:
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


def new_images(
    count: int,
    uris: Sequence[str],
    labels: Sequence[Any] | None,
    metadata: Sequence[Metadata | None] | None,
    files: Sequence[FileState | None] | None = None,
) -> Iterator[NewImage]:
    """Rows to be of ``count`` images; each is checked when it is taken.

    Raises
    ------
    InvalidInputError
        If lengths differ, at once; if a value does not fit, when its row is taken.
    """
    check_lengths(count, uris=uris, labels=labels, metadata=metadata)
    return map(
        _new_image,
        uris,
        repeat(None) if labels is None else labels,
        repeat(None) if metadata is None else metadata,
        repeat(None) if files is None else files,
    )


def _new_image(uri: str, label: Any, metadata: Metadata | None, file: FileState | None) -> NewImage:
    if not isinstance(uri, str):
        raise InvalidInputError(f"uris: expected text, got {uri!r}")
    return NewImage(store_text(uri) or "", store_label(label), store_metadata(metadata, uri), file)


def store_label(label: Any) -> str | bytes | None:
    """A label as it is stored: text; whole numbers become text."""
    if label is None:
        return None
    if isinstance(label, str):
        return store_text(str(label))
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return str(int(label))
    raise InvalidInputError(f"label: expected a class name, got {label!r}")


def uri_of(image: ImageInput) -> str:
    """Where an image can be found again: an absolute path or a URI; empty for one in memory."""
    if not isinstance(image, str | os.PathLike):
        return ""
    name = os.fspath(image)
    path, mark, row = name.rpartition("#")
    if mark and not os.path.exists(name) and os.path.exists(path):
        return f"{os.path.abspath(path)}#{row}"
    if isinstance(image, str) and not os.path.exists(name):
        return name
    return path_uri(name)
