"""``sync``: make an index say what a folder holds, encoding only what is new or changed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hashlens.data.folders import Listing, list_folder
from hashlens.data.opening import find_folder, open_directory
from hashlens.data.source import ReadOptions
from hashlens.errors import IndexStoreError
from hashlens.files import Uri, changed_ns, file_state, parse_row, path_uri, row_uri, uri_path
from hashlens.index import writing
from hashlens.index.rows import check_encoded, check_lengths, load_text, store_text
from hashlens.index.store import Store
from hashlens.index.writing import store_label
from hashlens.types import EncodedBatch, EncoderLike, Skipped, SyncReport

if TYPE_CHECKING:
    from hashlens.index.protocol import Index


class _Known(NamedTuple):
    """An image of the index whose file is under the folder."""

    id: int
    size: int | None
    mtime_ns: int | None
    digest: bytes | None


class _Job(NamedTuple):
    """A file to encode; ``id`` is None where it is new."""

    uri: Uri
    id: int | None
    label: str | bytes | None


@dataclass
class FolderSync:
    """One sync: what it works with, and what it found to do; see ``HashIndex.sync``."""

    store: Store
    encoder: EncoderLike
    folder: Path
    progress: Callable[[int, int], None] | None = None
    strict: bool = False
    verify_content: bool = False
    jobs: list[_Job] = field(default_factory=list)
    changes: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    moved: int = 0
    unchanged: int = 0

    def run(
        self, paths: Sequence[Path], labels: Sequence[Any] | None, kept: Sequence[Path] = ()
    ) -> SyncReport:
        """Make the index say that the folder holds these files, and those ``kept`` as they are."""
        if labels is not None:
            check_lengths(len(paths), labels=labels)
        names = [None] * len(paths) if labels is None else [store_label(label) for label in labels]
        gone = self._plan(paths, names, {os.path.abspath(path) for path in kept})
        if self.changes:
            writing.update_records(self.store, self.changes)
        if gone:
            writing.remove_images(self.store, np.array(gone, np.int64))
        added = updated = 0
        skipped: list[Skipped] = []
        uris = (job.uri for job in self.jobs)
        for batch in self.encoder.encode_batches(uris, strict=self.strict):
            skipped += batch.skipped
            new = self._commit(batch)
            added += new
            updated += len(batch.positions) - new
            if self.progress is not None:
                self.progress(added + updated + len(skipped), len(self.jobs))
        return SyncReport(added, updated, self.moved, len(gone), self.unchanged, tuple(skipped))

    def _plan(
        self, paths: Sequence[Path], labels: Sequence[str | bytes | None], kept: set[str]
    ) -> list[int]:
        """Find out what to change and to encode; return the ids of images that are gone."""
        with self.store.reading() as (connection, *_):
            known, others = _known_files(connection, self.folder)
        if kept:
            known = {uri: held for uri, held in known.items() if not _is_under(uri, kept)}
        if known and not paths:
            raise IndexStoreError(
                f"{self.folder}: holds no images, but {len(known)} in the index come from there; "
                "if they are really gone, remove them with `hashlens index remove`"
            )
        new: list[tuple[Path, Uri, str | bytes | None]] = []
        for path, label in zip(paths, labels, strict=True):
            uri = path_uri(path)
            entries = known.pop(uri, None)
            if entries is None:
                new.append((path, uri, label))
            for entry in entries or ():
                self._compare(path, uri, entry)
        gone = {entry.id for entries in known.values() for entry in entries}
        by_digest: dict[bytes, list[tuple[int, str]]] = {}
        for old, entries in (*known.items(), *(_lost(others, new) if new else ())):
            for entry in entries:
                if entry.digest:
                    by_digest.setdefault(entry.digest, []).append((entry.id, old))
        for path, uri, label in new:
            state = file_state(path) if by_digest else None
            held = by_digest.get(state.digest) if state else None
            if not held or state is None:
                self.jobs.append(_Job(uri, None, label))
                continue
            image_id, old = _take(held, uri)
            gone.discard(image_id)
            values = {"uri": store_text(uri), **state._asdict()}
            stays = uri_path(old).parent.name == uri_path(uri).parent.name
            if label is not None and not stays:  # else the image keeps the one that it was given
                values["label"] = label
            self.changes.append((image_id, values))
            self.moved += 1
        return sorted(gone)

    def _compare(self, path: Path, uri: Uri, entry: _Known) -> None:
        """Unchanged by size and time, or by content; else it is encoded again."""
        state = None
        with suppress(OSError):  # encoding will list it as unreadable
            status = os.stat(path)
            same = (status.st_size, changed_ns(status)) == (entry.size, entry.mtime_ns)
            if same and not self.verify_content:
                self.unchanged += 1
                return
            state = file_state(path) if status.st_size == entry.size else None
        if state is None or state.digest != entry.digest:
            self.jobs.append(_Job(uri, entry.id, None))
            return
        self.changes.append((entry.id, state._asdict()))
        self.unchanged += 1

    def _commit(self, batch: EncodedBatch) -> int:
        """Store an encoded batch; return how many of its images are new."""
        codes, features = check_encoded(self.store.meta(), batch.codes, batch.features)
        jobs = [self.jobs[i] for i in batch.positions.tolist()]
        new = np.array([job.id is None for job in jobs], np.bool_)
        if new.any():
            images = [
                writing.NewImage(store_text(job.uri) or "", job.label, None, file)
                for job, file in zip(jobs, batch.files, strict=True)
                if job.id is None
            ]
            writing.append_images(self.store, codes[new], features[new], images)
        if not new.all():
            ids = np.array([job.id for job in jobs if job.id is not None], np.int64)
            files = [file for file, added in zip(batch.files, new, strict=True) if not added]
            writing.replace_images(self.store, ids, codes[~new], features[~new], files)
        return int(new.sum())


def _is_under(uri: str, places: set[str]) -> bool:
    """Whether a file is one of these, or below one of them."""
    path = uri_path(uri)
    return any(os.fspath(place) in places for place in (path, *path.parents))


def _known_files(
    connection: sqlite3.Connection, folder: Path
) -> tuple[dict[str, list[_Known]], dict[str, list[_Known]]]:
    """Living images that are files, by URI: those under a folder, and the others."""
    root = os.path.join(os.path.abspath(folder), "")
    known: dict[str, list[_Known]] = {}
    others: dict[str, list[_Known]] = {}
    sql = "SELECT id, uri, size, mtime_ns, digest FROM images WHERE alive ORDER BY id"
    for image_id, stored, *state in connection.execute(sql):
        uri = load_text(stored) or ""
        if parse_row(uri) is not None:
            continue
        inside = uri.startswith((root, "file://")) and os.fspath(uri_path(uri)).startswith(root)
        (known if inside else others).setdefault(uri, []).append(_Known(image_id, *state))
    return known, others


def _lost(
    others: Mapping[str, list[_Known]], new: Sequence[tuple[Path, Uri, Any]]
) -> Iterator[tuple[str, list[_Known]]]:
    """Images from other places whose file is gone, and is as large as a new one."""
    sizes = set()
    for path, _, _ in new:
        with suppress(OSError):
            sizes.add(os.stat(path).st_size)
    for uri, entries in others.items():
        if any(entry.size in sizes for entry in entries) and not os.path.exists(uri_path(uri)):
            yield uri, entries


def _take(held: list[tuple[int, str]], uri: str) -> tuple[int, str]:
    """Take one of the images of a content, rather the one whose path ends as this one does."""

    def shared(old: tuple[int, str]) -> int:
        return sum(takewhile(bool, map(eq, reversed(old[1].split("/")), reversed(uri.split("/")))))

    best = max(held, key=shared)
    held.remove(best)
    return best


class SyncedFolder(NamedTuple):
    """What a folder holds, and what an index made of it."""

    listing: Listing
    report: SyncReport


def sync_folder(
    index: Index,
    spec: str,
    options: ReadOptions,
    *,
    use_labels: bool = True,
    verify_content: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyncedFolder:
    """List a folder, with its labels, and make an index say what it holds."""
    root, all_classes = find_folder(spec)
    found = list_folder(root, options)
    labels: list[str | None] | None = None
    if use_labels and len(found.uris):
        source = open_directory(
            path_uri(root), root, options, all_classes=all_classes, listing=found
        )
        labels = [source.label_name(i) for i in range(len(source))]
    report = index.sync(
        root,
        found.paths,
        labels,
        progress=progress,
        strict=options.strict,
        kept=found.unread,
        verify_content=verify_content,
    )
    return SyncedFolder(found, report)


def relocated(uri: str, old: Path, new: Path) -> Uri | None:
    """The URI of a file or row below ``old`` once it is below ``new``; None for one elsewhere."""
    row = parse_row(uri)
    if row is not None and not row.is_in_file:
        return None
    path = uri_path(_file_of(uri))
    if not path.is_relative_to(old):
        return None
    moved = path_uri(new / path.relative_to(old))
    return moved if row is None else row_uri(moved, row.row, row.column)


def relocate(store: Store, old: Path, new: Path) -> tuple[int, int]:
    """Change the paths below one folder to be below another; the number of these, and of lost ones.

    The model's path is changed too, where it is below. Nothing is changed if no file is found.
    """
    with store.reading() as (connection, meta, *_):
        rows = connection.execute("SELECT id, uri FROM images WHERE alive ORDER BY id").fetchall()
    moves = [(id, relocated(load_text(uri) or "", old, new)) for id, uri in rows]
    changes = [(id, uri) for id, uri in moves if uri is not None]
    model = relocated(meta.model, old, new) if meta.model else None
    if not changes and model is None:
        raise IndexStoreError(f"{store.path}: holds nothing that comes from {old}")
    lost = sum(not os.path.exists(uri_path(_file_of(uri))) for _, uri in changes)
    if changes and lost == len(changes):
        raise IndexStoreError(
            f"{new}: has none of the {lost} files that the index knows below {old}, such as "
            f"{changes[0][1]}; nothing was changed"
        )
    writing.update_records(
        store,
        [(id, {"uri": store_text(uri)}) for id, uri in changes],
        **({} if model is None else {"model": model}),
    )
    return len(changes), lost


def _file_of(uri: str) -> str:
    row = parse_row(uri)
    return uri if row is None else row.table


def lost_files(uris: Iterable[str]) -> list[str]:
    """Files, of some images, that are not where they were."""
    paths = dict.fromkeys(uri_path(_file_of(uri)) for uri in uris)
    return [os.fspath(path) for path in paths if path.is_absolute() and not path.exists()]
