"""``sync``: make an index say what a folder holds, encoding only what is new or changed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
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
class _Plan:
    jobs: list[_Job] = field(default_factory=list)
    changes: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    moved: int = 0
    unchanged: int = 0


@dataclass
class FolderSync:
    """What a sync works with; see ``HashIndex.sync``."""

    store: Store
    encoder: EncoderLike
    folder: Path
    progress: Callable[[int, int], None] | None = None
    strict: bool = False
    verify_content: bool = False

    def run(
        self, paths: Sequence[Path], labels: Sequence[Any] | None, kept: Sequence[Path] = ()
    ) -> SyncReport:
        """Make the index say that the folder holds these files, and those ``kept`` as they are."""
        if labels is not None:
            check_lengths(len(paths), labels=labels)
        names = [None] * len(paths) if labels is None else [store_label(label) for label in labels]
        plan = self._plan(paths, names, {os.path.abspath(path) for path in kept})
        if plan.changes:
            writing.update_records(self.store, plan.changes)
        if plan.gone:
            writing.remove_images(self.store, np.array(plan.gone, np.int64))
        added, updated, skipped = self._encode(plan.jobs)
        return SyncReport(added, updated, plan.moved, len(plan.gone), plan.unchanged, skipped)

    def _plan(
        self, paths: Sequence[Path], labels: Sequence[str | bytes | None], kept: set[str]
    ) -> _Plan:
        with self.store.reading() as (connection, *_):
            known, others = _known_files(connection, self.folder)
        if kept:
            known = {uri: held for uri, held in known.items() if not _is_under(uri, kept)}
        if known and not paths:
            raise IndexStoreError(
                f"{self.folder}: holds no images, but {len(known)} in the index come from there; "
                "if they are really gone, remove them with `hashlens index remove`"
            )
        plan = _Plan()
        new: list[tuple[Path, Uri, str | bytes | None]] = []
        for path, label in zip(paths, labels, strict=True):
            uri = path_uri(path)
            entries = known.pop(uri, None)
            if entries is None:
                new.append((path, uri, label))
                continue
            for entry in entries:
                _compare(plan, path, uri, entry, self.verify_content)
        gone = {entry.id: uri for uri, entries in known.items() for entry in entries}
        moved = _Moved([*known.items(), *(_lost(others, new) if new else ())])
        for path, uri, label in new:
            state = file_state(path) if moved.by_digest else None
            old = moved.take(state.digest, uri) if state else None
            if old is None or state is None:
                plan.jobs.append(_Job(uri, None, label))
                continue
            image_id, old_uri = old
            gone.pop(image_id, None)
            values = {"uri": store_text(uri), **state._asdict()}
            stays = uri_path(old_uri).parent.name == uri_path(uri).parent.name
            if label is not None and not stays:  # else the image keeps the one that it was given
                values["label"] = label
            plan.changes.append((image_id, values))
            plan.moved += 1
        plan.gone = sorted(gone)
        return plan

    def _encode(self, jobs: Sequence[_Job]) -> tuple[int, int, tuple[Skipped, ...]]:
        """Encode the jobs' files, committing as it goes; return numbers added and updated."""
        uris = (job.uri for job in jobs)
        added = updated = done = 0
        skipped: list[Skipped] = []
        for batches in writing.commits(self.encoder.encode_batches(uris, strict=self.strict)):
            for batch in batches:
                skipped += batch.skipped
                new = self._commit(jobs, batch)
                added += new
                updated += len(batch.positions) - new
                done += len(batch.positions) + len(batch.skipped)
            if self.progress is not None:
                self.progress(done, len(jobs))
        return added, updated, tuple(skipped)

    def _commit(self, jobs: Sequence[_Job], batch: EncodedBatch) -> int:
        """Store an encoded batch; return how many of its images are new."""
        codes, features = check_encoded(self.store.meta(), batch.codes, batch.features)
        new = np.array([jobs[i].id is None for i in batch.positions.tolist()], np.bool_)
        if new.any():
            images = [
                writing.NewImage(store_text(jobs[i].uri) or "", jobs[i].label, None, file)
                for i, file in zip(batch.positions.tolist(), batch.files, strict=True)
                if jobs[i].id is None
            ]
            writing.append_images(self.store, codes[new], features[new], images)
        if not new.all():
            ids = np.array([jobs[i].id for i in batch.positions[~new].tolist()], np.int64)
            files = [file for file, added in zip(batch.files, new, strict=True) if not added]
            writing.replace_images(self.store, ids, codes[~new], features[~new], files)
        return int(new.sum())


def _compare(plan: _Plan, path: Path, uri: Uri, entry: _Known, verify_content: bool) -> None:
    """Unchanged by size and time, or by content; else it is encoded again."""
    try:
        status = os.stat(path)
    except OSError:
        plan.jobs.append(_Job(uri, entry.id, None))  # will be listed as unreadable
        return
    known = (status.st_size, changed_ns(status)) == (entry.size, entry.mtime_ns)
    if known and not verify_content:
        plan.unchanged += 1
        return
    state = file_state(path) if status.st_size == entry.size else None
    if state is not None and state.digest == entry.digest:
        plan.changes.append((entry.id, state._asdict()))
        plan.unchanged += 1
        return
    plan.jobs.append(_Job(uri, entry.id, None))


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


class _Moved:
    """Images whose file is gone, to be found again by its content."""

    def __init__(self, gone: Iterable[tuple[str, list[_Known]]]) -> None:
        self.by_digest: dict[bytes, list[tuple[int, str]]] = {}
        for uri, entries in gone:
            for entry in entries:
                if entry.digest:
                    self.by_digest.setdefault(entry.digest, []).append((entry.id, uri))

    def take(self, digest: bytes, uri: str) -> tuple[int, str] | None:
        """One image of this content, rather the one whose path ends as this one does."""
        held = self.by_digest.get(digest)
        if not held:
            return None
        best = max(held, key=lambda old: _shared_ending(old[1], uri))
        held.remove(best)
        return best


def _shared_ending(one: str, other: str) -> int:
    """Number of parts at the end that two paths have in common."""
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


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
    if use_labels and found.paths:
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
    path = uri_path(uri if row is None else row.table)
    if not path.is_relative_to(old):
        return None
    moved = path_uri(new / path.relative_to(old))
    return moved if row is None else row_uri(moved, row.row)


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
