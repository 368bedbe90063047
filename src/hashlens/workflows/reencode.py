"""``hashlens index reencode``: the images of an index with another model, switched at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hashlens.errors import IndexStoreError
from hashlens.files import move
from hashlens.index.hash_index import HashIndex
from hashlens.index.layout import UPLOADS
from hashlens.index.store import copy_uploads, file_errors
from hashlens.types import EncoderLike, Skipped


class Reencoded(NamedTuple):
    """An index with other codes; ``before`` is where the old one is, None where both stayed."""

    images: int
    skipped: tuple[Skipped, ...]
    new: Path
    before: Path | None


def reencode(
    path: Path,
    encoder: EncoderLike,
    model: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reencoded:
    """Encode an index's images into a new index next to it, and exchange the two at the end.

    Labels and metadata stay, ids are new. A run that was stopped goes on. Images that were added
    or removed meanwhile are followed. With images that cannot be read nothing is exchanged.
    """
    if getattr(encoder, "vectors", None) is not None:
        raise IndexStoreError(
            f"{path}: holds vectors, which an index does not keep; make a new one of them with "
            "`hashlens index create`"
        )
    new, before = (path.with_name(path.name + ending) for ending in (".new", ".before"))
    with file_errors(path):
        if before.exists() and new.exists() and not path.exists():  # stopped while exchanging
            move(new, path)
    if before.exists():
        raise IndexStoreError(f"{before}: is there already, from the last time; move it away")
    skipped: tuple[Skipped, ...] = ()
    with HashIndex.open(path, read_only=True) as old, _opened(new, old, encoder, model) as made:
        while missing := _missing(old, made):
            records = [record for record in old.records() if record.id in missing]
            first = len(made)

            def encoded(_: int, first: int = first, total: int = len(records)) -> None:
                progress(len(made) - first, total)

            report = made.add(
                [record.uri for record in records],
                [record.label for record in records],
                [dict(record.metadata) for record in records],
                progress=encoded,
            )
            skipped = report.skipped
            if skipped:
                break
        made.remove(sorted(_missing(made, old)))
        images = len(made)
    if skipped:
        return Reencoded(images, skipped, new, None)
    with file_errors(path):
        copy_uploads(path / UPLOADS, new / UPLOADS)  # their names stay, as the folder's does
        os.rename(path, before)
        move(new, path)
    return Reencoded(images, (), path, before)


def _opened(new: Path, old: HashIndex, encoder: EncoderLike, model: Path) -> HashIndex:
    if new.exists():
        return HashIndex.open(new, encoder)
    features = old.info().features if old.feature_dim else "none"
    return HashIndex.create(new, encoder, features=features, model=model)


def _missing(index: HashIndex, other: HashIndex) -> set[int]:
    """Ids of the images whose URI the other index lacks; one that is there twice counts twice."""
    known = other.uris()
    return {each for uri, ids in index.uris().items() for each in ids[len(known.get(uri, ())) :]}
