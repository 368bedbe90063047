"""``sync``: make an index say what a folder holds, encoding only what is new or changed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hashlens.errors import IndexStoreError
from hashlens.files import Uri, file_state, parse_row, path_uri, uri_path
from hashlens.index import writing
from hashlens.index.rows import check_encoded, check_lengths, load_text, store_text
from hashlens.index.store import Store
from hashlens.index.writing import store_label
from hashlens.types import EncodedBatch, EncoderLike, Skipped, SyncReport


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
            known = _known_under(connection, self.folder)
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
                _compare(plan, path, uri, entry)
        gone = {entry.id: uri for uri, entries in known.items() for entry in entries}
        by_digest = {
            entry.digest: entry.id
            for entries in known.values()
            for entry in entries
            if entry.digest
        }
        for path, uri, label in new:
            state = file_state(path) if by_digest else None
            image_id = by_digest.pop(state.digest, None) if state else None
            if image_id is None or state is None:
                plan.jobs.append(_Job(uri, None, label))
                continue
            values = {"uri": store_text(uri), **state._asdict()}
            renamed = uri_path(gone.pop(image_id)).parent == uri_path(uri).parent
            if label is not None and not renamed:  # else the image keeps the one that it was given
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


def _compare(plan: _Plan, path: Path, uri: Uri, entry: _Known) -> None:
    """Unchanged by size and time, or by content; else it is encoded again."""
    try:
        status = os.stat(path)
    except OSError:
        plan.jobs.append(_Job(uri, entry.id, None))  # will be listed as unreadable
        return
    if (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns):
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


def _known_under(connection: sqlite3.Connection, folder: Path) -> dict[str, list[_Known]]:
    """Living images whose file is under a folder, by URI."""
    root = os.path.join(os.path.abspath(folder), "")
    known: dict[str, list[_Known]] = {}
    sql = "SELECT id, uri, size, mtime_ns, digest FROM images WHERE alive ORDER BY id"
    for image_id, stored, *state in connection.execute(sql):
        uri = load_text(stored) or ""
        if parse_row(uri) is not None:
            continue
        if uri.startswith((root, "file://")) and os.fspath(uri_path(uri)).startswith(root):
            known.setdefault(uri, []).append(_Known(image_id, *state))
    return known
