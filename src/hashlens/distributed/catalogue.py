"""Which shard holds which ids: the one file that makes folders of shards an index.

``shards.json`` is replaced in one step (written aside, synced, renamed), so a reader sees either
the old catalogue or the new one. A shard is an ordinary index whose own ids are *local*; the
catalogue maps them to ids of the sharded index by ranges. So a sharded index and one index of the
same images agree on every id, and ids never change when shards are added.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from hashlens.errors import IndexStoreError
from hashlens.files import make_folder, replace_file, written_aside
from hashlens.index.hash_index import HashIndex
from hashlens.index.store import require_free
from hashlens.types import Ids

FILE_NAME = "shards.json"
LOCK_NAME = "shards.lock"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class IdRange:
    """``count`` ids from ``start`` on are the shard's own ids from ``local`` on."""

    start: int
    local: int
    count: int


@dataclass(frozen=True)
class Shard:
    """One shard: its folder (relative to the catalogue's), and the ids it holds.

    ``skipped`` lists the images of its part of the source that could not be read, as
    ``(uri, reason)``.
    """

    folder: str
    ranges: tuple[IdRange, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def count(self) -> int:
        """Number of ids ever given to this shard (removed ones included)."""
        return sum(r.count for r in self.ranges)

    def to_global(self, local: Ids) -> Ids:
        """Ids of the sharded index for the shard's own ids; -1 for others."""
        return _moved(local, [(r.local, r.start, r.count) for r in self.ranges])

    def to_local(self, ids: Ids) -> Ids:
        """The shard's own ids for ids of the sharded index; -1 where it does not hold one."""
        return _moved(ids, [(r.start, r.local, r.count) for r in self.ranges])


def _moved(ids: Ids, ranges: list[tuple[int, int, int]]) -> Ids:
    """Ids in one of the ranges (from, to, count), moved there; -1 for all others."""
    result = np.full(ids.shape, -1, dtype=np.int64)
    for start, to, count in ranges:
        inside = (ids >= start) & (ids < start + count)
        result[inside] = ids[inside] - start + to
    return result


@dataclass(frozen=True)
class Catalogue:
    """What a sharded index consists of."""

    bits: int
    feature_dim: int
    fingerprint: str
    model: str | None
    shards: tuple[Shard, ...]

    @property
    def next_id(self) -> int:
        """The first id that no shard holds yet."""
        return max((r.start + r.count for s in self.shards for r in s.ranges), default=0)

    def shard_of(self, image_id: int) -> int | None:
        """Position of the shard that holds an id, or None."""
        for position, shard in enumerate(self.shards):
            if any(r.start <= image_id < r.start + r.count for r in shard.ranges):
                return position
        return None

    def with_added(self, position: int, end: int) -> Catalogue:
        """The catalogue once all of a shard's own ids below ``end`` have ids in it."""
        shard = self.shards[position]
        last = shard.ranges[-1] if shard.ranges else None
        local = last.local + last.count if last else 0
        start, count = self.next_id, end - local
        if count <= 0:
            return self
        if last and last.start + last.count == start:
            ranges = (*shard.ranges[:-1], replace(last, count=last.count + count))
        else:
            ranges = (*shard.ranges, IdRange(start, local, count))
        shards = list(self.shards)
        shards[position] = replace(shard, ranges=ranges)
        return replace(self, shards=tuple(shards))


def is_sharded(folder: str | Path) -> bool:
    """Whether a folder holds a sharded index."""
    return (Path(folder) / FILE_NAME).is_file()


def copy_shards(folder: Path, path: Path) -> int:
    """Copy a sharded index to a new folder, each shard at one commit; the number of its images.

    What is added meanwhile may come along: the catalogue is read first, so the copy is as an index
    whose writer stopped, and the next one goes on there.
    """
    require_free(path)
    catalogue = read_catalogue(folder)
    make_folder(path.parent)
    with written_aside(path) as aside:
        aside.mkdir()
        images = 0
        for shard in catalogue.shards:
            with HashIndex.open(folder / shard.folder, read_only=True) as index:
                images += index.copy(aside / shard.folder)
        write_catalogue(aside, catalogue)
    return images


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Replace the folder's catalogue in one step."""
    content = {
        "format_version": FORMAT_VERSION,
        "bits": catalogue.bits,
        "feature_dim": catalogue.feature_dim,
        "fingerprint": catalogue.fingerprint,
        "model": catalogue.model,
        "shards": [
            {
                "folder": shard.folder,
                "ranges": [[r.start, r.local, r.count] for r in shard.ranges],
                "skipped": [list(entry) for entry in shard.skipped],
            }
            for shard in catalogue.shards
        ],
    }
    replace_file(folder / FILE_NAME, json.dumps(content, indent=1))


def change_catalogue(folder: Path, change: Callable[[Catalogue], Catalogue]) -> None:
    """Replace the folder's catalogue by what ``change`` makes of it; one process at a time."""
    with FileLock(folder / LOCK_NAME):
        before = read_catalogue(folder)
        after = change(before)
        if after != before:
            write_catalogue(folder, after)


def read_catalogue(folder: str | Path) -> Catalogue:
    """Read and check a folder's catalogue."""
    path = Path(folder) / FILE_NAME
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise IndexStoreError(
            f"{path}: no such file; make a sharded index with `hashlens index create --shards`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise IndexStoreError(f"{path}: not a catalogue of shards ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise IndexStoreError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; "
            "a newer hashlens may have written it"
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise IndexStoreError(
            f"{path}: an entry is missing or of the wrong type: {error}"
        ) from error


class CatalogueFile:
    """A folder's catalogue, read again once it was replaced, by whichever process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: tuple[tuple[int, int], Catalogue] | None = None

    def current(self, *, again: bool = False) -> Catalogue:
        """The catalogue as it is now."""
        try:
            status = (self._folder / FILE_NAME).stat()
            seen = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            seen = (-1, -1)  # reading it says what is wrong
        known = self._read
        if known is None or again or known[0] != seen:
            known = self._read = (seen, read_catalogue(self._folder))
        return known[1]


def _parse(content: dict[str, Any]) -> Catalogue:
    shards = tuple(
        Shard(
            folder=str(entry["folder"]),
            ranges=tuple(IdRange(*map(int, r)) for r in entry["ranges"]),
            skipped=tuple((str(uri), str(reason)) for uri, reason in entry["skipped"]),
        )
        for entry in content["shards"]
    )
    return Catalogue(
        bits=int(content["bits"]),
        feature_dim=int(content["feature_dim"]),
        fingerprint=str(content["fingerprint"]),
        model=content["model"],
        shards=shards,
    )
