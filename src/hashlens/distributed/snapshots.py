"""What a sharded index is on disk: a manifest, and immutable snapshots of ordinary indexes.

``shards.json`` names the snapshot of each shard and is replaced in one step (written aside, synced,
renamed). A snapshot is never written once it is named. A change makes new snapshots of the shards
that it touches next to the old ones, then a new manifest; readers go on with what they have open.
The files of codes and features are append-only, and an older snapshot reads its own rows of them
alone, so both may share them by hard links. SQLite keeps a rollback journal here, not a write-ahead
log, which needs memory that machines on a network file system do not share.

The id of an image is the shard's number in the upper bits and the shard's own id in the lower 40.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hashlens.data.remote import located, read_remote, unread
from hashlens.errors import IndexStoreError, InvalidInputError, SourceError, TimeLimitError
from hashlens.files import (
    FileState,
    is_remote,
    keeps_locks,
    make_folder,
    remove_abandoned,
    replace_file,
    sync_directory,
    written_aside,
)
from hashlens.index.hash_index import HashIndex
from hashlens.index.layout import ARRAYS, DATABASE, UPLOADS, Meta
from hashlens.index.store import (
    NO_LOCKS,
    Store,
    copy_uploads,
    file_errors,
    new_folder,
    require_free,
)
from hashlens.index.writing import NewImage, append_images
from hashlens.types import Codes, Ids

FILE_NAME, LOCK_NAME = "shards.json", "shards.lock"
FORMAT_VERSION = 2
SHARD_SHIFT = 40
_LOCAL = (1 << SHARD_SHIFT) - 1
_BLOCK = 1 << 16  # rows that are written at a time
_MANIFEST_BYTES = 1 << 28  # at most, behind a URI
Question: TypeAlias = Callable[[HashIndex], Any]  # carried to the process that has a shard open
Call: TypeAlias = tuple[str, Question]  # the snapshot that is asked, the same version of all


def global_ids(shard: int, local: Ids) -> Ids:
    """Ids of the whole index for a shard's own; -1 stays."""
    return np.where(local < 0, -1, local + (shard << SHARD_SHIFT))


def local_ids(shard: int, ids: Ids) -> Ids:
    """A shard's own ids; -1 for those of other shards."""
    return np.where((ids >= 0) & (ids >> SHARD_SHIFT == shard), ids & _LOCAL, -1)


def holders(shards: int, ids: Ids) -> Iterator[tuple[int, NDArray[np.int64], Ids]]:
    """Each shard that holds some of the ids, which of them these are, and its own ids."""
    positions = ids >> SHARD_SHIFT
    unknown = ids[(ids < 0) | (positions >= shards)]
    if len(unknown):
        raise InvalidInputError(f"id {int(unknown[0])}: no such image in the index")
    for position in np.unique(positions).tolist():
        at = np.flatnonzero(positions == position)
        yield position, at, ids[at] & _LOCAL


@dataclass(frozen=True)
class Snapshot:
    """A published state of one shard: its folder, next to the manifest, and its living images."""

    folder: str
    images: int


@dataclass(frozen=True)
class Manifest:
    """What a sharded index consists of at one version."""

    meta: Meta  # of a new shard
    shards: tuple[Snapshot, ...] = ()
    version: int = 1
    id: str = field(default_factory=lambda: secrets.token_hex(8))  # of all versions and copies

    @property
    def images(self) -> int:
        """Living images of all shards."""
        return sum(shard.images for shard in self.shards)


def is_sharded(folder: str | Path) -> bool:
    """Whether a folder holds a sharded index."""
    return (Path(folder) / FILE_NAME).is_file()


def read_manifest(place: str | Path) -> Manifest:
    """Read and check the manifest of a folder, or of a URI such as ``s3://bucket/shop.idx``."""
    path = f"{str(place).rstrip('/')}/{FILE_NAME}"
    try:
        data = read_remote(path, _MANIFEST_BYTES) if is_remote(path) else Path(path).read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise IndexStoreError(
            f"{path}: no such file; make a sharded index with `hashlens index create --shards`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise IndexStoreError(f"{path}: not a manifest of shards ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version == 1:
        raise IndexStoreError(
            f"{place}: shards of an older form, which are not searched any more; convert them "
            f"with `hashlens index reshard {place} NEW --shards N` (images get new ids)"
        )
    if version != FORMAT_VERSION:
        raise IndexStoreError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; "
            "a newer hashlens may have written it"
        )
    try:
        shards = (Snapshot(_own_name(s["folder"]), int(s["images"])) for s in content["shards"])
        meta = Meta(**{name: kind(content[name]) for name, kind in _META.items()})
        return Manifest(meta, tuple(shards), int(content["version"]), str(content["id"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IndexStoreError(
            f"{path}: an entry is missing or of the wrong type: {error}"
        ) from error


_META = {"bits": int, "feature_dim": int, "features": str, "fingerprint": str, "model": str}


def _own_name(name: Any) -> str:
    """The name of a folder next to the manifest, and of no other place."""
    if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"expected the name of a folder next to it, got {name!r:.80}")
    return name


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest in one step."""
    content = asdict(manifest)
    meta = content.pop("meta")
    content = {"format_version": FORMAT_VERSION} | {n: meta[n] for n in _META} | content
    replace_file(folder / FILE_NAME, json.dumps(content, indent=1) + "\n")


class UnreadableShardError(IndexStoreError):
    """A shard is damaged, or its storage does not answer."""


class Answers(NamedTuple):
    """What shards said, by position; those that did not, and why (None: not in time)."""

    values: dict[int, Any]
    missing: dict[int, UnreadableShardError | None]


class Shards(Protocol):
    """Asks shards, here or elsewhere."""

    def ask(self, calls: Mapping[int, Call], *, patient: bool = False) -> Answers:
        """Ask the shards at these positions; ``patient`` for what reads a whole shard."""


class OpenShards:
    """Shards opened in this process, asked one after the other: each search uses all cores.

    Of each shard the last two snapshots stay open; ids are the shard's own. Snapshots behind a URI
    are copied to a folder that goes with this object.
    """

    def __init__(self, index: str | Path) -> None:
        self._source = str(index) if is_remote(str(index)) else None
        if self._source is not None:
            self._copies = tempfile.TemporaryDirectory(prefix="hashlens-shards-")
        self._folder = Path(index if self._source is None else self._copies.name)
        self._opened: dict[str, HashIndex] = {}
        self._lock = threading.Lock()

    def ask(self, calls: Mapping[int, Call], *, patient: bool = False) -> Answers:
        """Ask each shard; other errors than unreadable shards are raised."""
        answers = Answers({}, {})
        for position, call in calls.items():
            try:
                answers.values[position] = self.ask_one(*call)
            except UnreadableShardError as error:
                answers.missing[position] = error
        return answers

    def ask_one(self, snapshot: str, question: Question) -> Any:
        """The answer of one shard."""
        try:
            return question(self._open(snapshot))
        except TimeLimitError:
            raise
        except (IndexStoreError, SourceError, OSError) as error:
            self._opened.pop(snapshot, None)  # storage that is back is opened again
            raise UnreadableShardError(str(error)) from error

    def _open(self, snapshot: str) -> HashIndex:
        with self._lock:
            if snapshot not in self._opened:
                if self._source is not None:
                    _fetch(self._source, self._folder / snapshot)
                index = HashIndex.open(self._folder / snapshot, read_only=True)
                shard = snapshot.partition(".")[0]
                for old in [name for name in self._opened if name.startswith(shard)][:-1]:
                    del self._opened[old]
                    if self._source is not None:
                        shutil.rmtree(self._folder / old, ignore_errors=True)
                self._opened[snapshot] = index
            return self._opened[snapshot]


def _fetch(uri: str, target: Path) -> None:
    """Copy the snapshot of this name behind a URI."""
    system, root = located(uri)
    with written_aside(target) as aside:
        try:
            system.get(f"{root}/{target.name}", str(aside), recursive=True)
        except Exception as error:  # each file system raises its own kinds
            raise unread(f"{uri.rstrip('/')}/{target.name}", error) from error


class Publication:
    """One change of a sharded index: writable copies of some shards, published together."""

    def __init__(self, folder: Path, manifest: Manifest, stack: ExitStack) -> None:
        self._folder, self._before, self._stack = folder, manifest, stack
        self._shards = list(manifest.shards)
        self._opened: dict[int, HashIndex] = {}

    def __len__(self) -> int:
        return len(self._shards)

    def shard(self, position: int) -> HashIndex:
        """A copy of a shard that may be changed; behind the last one, a new one."""
        if position not in self._opened:
            name = snapshot_name(position, self._before.version + 1)
            aside = self._stack.enter_context(written_aside(self._folder / name))
            if position < len(self._shards):
                old = self._folder / self._shards[position].folder
                shutil.copytree(old, aside, copy_function=_share)
                index = HashIndex.open(aside)
            else:
                self._shards.append(Snapshot(name, 0))
                index = HashIndex(Store.create(aside, self._before.meta))
            self._stack.callback(index.close)  # before the folder goes, after an error
            self._shards[position] = Snapshot(name, len(index))
            self._opened[position] = index
        return self._opened[position]

    def shards(self) -> Iterator[HashIndex]:
        """Every shard, to be changed."""
        return map(self.shard, range(len(self)))

    def holders(self, ids: Ids) -> Iterator[tuple[HashIndex, NDArray[np.int64], Ids]]:
        """As the function of this name, with shards to be changed."""
        return ((self.shard(p), at, own) for p, at, own in holders(len(self), ids))

    def smallest(self) -> int:
        """The shard that has the fewest images now."""
        counts = [shard.images for shard in self._shards]
        for position, index in self._opened.items():
            counts[position] = len(index)
        return counts.index(min(counts))

    def seal(self) -> Manifest:
        """End writing; return the next manifest."""
        for position, index in self._opened.items():
            self._shards[position] = seal(index, self._shards[position].folder)
        version = self._before.version + 1
        return replace(self._before, shards=tuple(self._shards), version=version)


@contextmanager
def publishing(folder: Path) -> Iterator[Publication]:
    """Change a sharded index, one process at a time: published when the block ends, or never."""
    read_manifest(folder)  # where storage is away, the lock would make the folder
    owner = folder / f"{LOCK_NAME}.owner"
    if not keeps_locks(folder / FILE_NAME):
        raise IndexStoreError(f"{folder}: {NO_LOCKS}; copy the folder to a local disk")
    with file_errors(folder), ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK_NAME, timeout=0))
        except Timeout as error:
            who = owner.read_text() if owner.is_file() else "another process"
            raise IndexStoreError(
                f"{folder}: {who} is changing this index; wait for it and run this again"
            ) from error
        stack.callback(owner.unlink, missing_ok=True)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        remove_abandoned(folder)
        manifest = read_manifest(folder)
        with ExitStack() as snapshots:
            publication = Publication(folder, manifest, snapshots)
            yield publication
            after = publication.seal()
        if after.shards != manifest.shards:  # the new snapshots have their names now
            _switch(folder, manifest, after)


def shard_name(position: int) -> str:
    """What a shard is called."""
    return f"shard-{position:04d}"


def snapshot_name(position: int, version: int) -> str:
    """A name that no snapshot had before."""
    return f"{shard_name(position)}.v{version}-{secrets.token_hex(3)}"


def _switch(folder: Path, before: Manifest | None, manifest: Manifest) -> None:
    """Go on to a version; snapshots that neither it nor the one before names are removed."""
    write_manifest(folder, manifest)
    kept = {shard.folder for shard in (*manifest.shards, *(before.shards if before else ()))}
    for path in folder.glob("shard-*.v*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _share(old: str, new: str) -> None:
    """Share a file that only grows by a hard link; copy others, and where there are no links."""
    if Path(old).name.partition(".")[0] in ARRAYS:
        with suppress(OSError):
            return os.link(old, new)
    shutil.copy2(old, new)  # the database is whole: its log was ended


def seal(index: HashIndex, name: str) -> Snapshot:
    """Close an index for good: what SQLite's log holds goes into its database, and the log ends."""
    snapshot = Snapshot(name, len(index))
    index.close()
    with closing(sqlite3.connect(index.path / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    sync_directory(index.path)
    return snapshot


@contextmanager
def creating(folder: Path, meta: Meta, shards: int) -> Iterator[list[HashIndex]]:
    """The empty shards of a new sharded index, to be filled; it is there when the block ends."""
    with new_folder(folder) as aside:
        aside.mkdir()
        write_manifest(aside, Manifest(meta, version=0))
        with publishing(aside) as publication:
            yield [publication.shard(position) for position in range(shards)]
        (aside / LOCK_NAME).unlink()


def copy_shards(source: Path, target: Path) -> int:
    """Copy a sharded index, which others may go on changing, at one version; its images.

    Snapshots are immutable: those that a copy has already are left, and the manifest goes last.
    """
    manifest = read_manifest(source)
    copied = read_manifest(target) if is_sharded(target) else None
    if copied is None:
        require_free(target)
    elif copied != manifest and (copied.id != manifest.id or copied.version >= manifest.version):
        raise IndexStoreError(
            f"{target}: expected an earlier copy of {source}, got another index, or a copy that "
            "was changed; choose a new folder"
        )
    with file_errors(target):
        make_folder(target)
        while True:
            try:
                for shard in manifest.shards:
                    if not (target / shard.folder).is_dir():
                        with HashIndex.open(source / shard.folder, read_only=True) as held:
                            held.copy(target / shard.folder)
                break
            except IndexStoreError:  # removed meanwhile, where two versions followed?
                before, manifest = manifest, read_manifest(source)
                if before == manifest:
                    raise
        copy_uploads(source / UPLOADS, target / UPLOADS)
        if copied != manifest:
            _switch(target, copied, manifest)
    return manifest.images


def reshard(
    old: Path, new: Path, shards: int | None, *, progress: Callable[[int], None] | None = None
) -> int:
    """Write an index, in shards or not, as a new one of so many shards; None: as one index.

    Nothing is encoded again. Images keep their order and what is known of them, and get new ids.
    Returns the number of images.
    """
    parts = [HashIndex.open(folder, read_only=True) for folder in _folders(old)]
    total, meta = sum(map(len, parts)), parts[0].store.meta()
    meta = Meta(**{name: getattr(meta, name) for name in _META})
    if shards is not None and not 1 <= shards <= max(total, 1):
        raise InvalidInputError(f"shards: expected 1 to {total} (the images), got {shards}")
    with ExitStack() as stack:
        if shards is None:
            aside = stack.enter_context(new_folder(new))
            made = [stack.enter_context(HashIndex(Store.create(aside, meta)))]
        else:
            made = stack.enter_context(creating(new, meta, shards))
        bounds, done = np.linspace(0, total, len(made) + 1).astype(int), 0
        for codes, features, rows in chain.from_iterable(map(_blocks, parts)):
            inside = (bounds.clip(done, done + len(rows)) - done).tolist()
            for index, start, end in zip(made, inside, inside[1:], strict=False):
                append_images(index.store, codes[start:end], features[start:end], rows[start:end])
            done += len(rows)
            if progress is not None:
                progress(len(rows))
    return total


def _folders(folder: Path) -> list[Path]:
    """The indexes of a sharded index of any form, or the folder itself where it is one index."""
    if not is_sharded(folder):
        return [folder]
    content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    try:
        return [folder / _own_name(shard["folder"]) for shard in content["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise IndexStoreError(f"{folder / FILE_NAME}: not a manifest of shards ({error})") from None


def _blocks(index: HashIndex) -> Iterator[tuple[Codes, NDArray[Any], list[NewImage]]]:
    """Codes, features and rows as they are stored, some at a time."""
    columns = "id, uri, label, metadata, size, mtime_ns, digest"
    with index.store.reading() as (connection, *_):
        cursor = connection.execute(f"SELECT {columns} FROM images WHERE alive ORDER BY id")
        while block := cursor.fetchmany(_BLOCK):
            _, codes, features = index.encoded([row[0] for row in block])
            rows = [NewImage._make([*row[1:4], row[4] and FileState(*row[4:])]) for row in block]
            yield codes, features, rows
