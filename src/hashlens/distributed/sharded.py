"""``ShardedIndex``: shards that answer as one index, in this process or on a Ray cluster."""

from __future__ import annotations

import heapq
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes
from hashlens.distributed.snapshots import (
    FILE_NAME,
    SHARD_SHIFT,
    Manifest,
    Publication,
    copy_shards,
    fetch_snapshot,
    global_ids,
    holders,
    local_ids,
    publishing,
    read_manifest,
    shard_name,
)
from hashlens.errors import (
    HashlensError,
    IndexStoreError,
    InvalidInputError,
    SourceError,
    TimeLimitError,
    system_reason,
)
from hashlens.index.exporting import joined
from hashlens.index.hash_index import HashIndex
from hashlens.index.layout import Meta
from hashlens.index.protocol import Hits, Index
from hashlens.index.ranking import ArraySearcher, check_latent
from hashlens.index.rows import check_ids, check_width, list_ids, require_same_model
from hashlens.index.writing import GivenRows, add_images, update_image
from hashlens.types import (
    AddReport,
    Codes,
    DuplicateGroups,
    EncodedBatch,
    EncoderLike,
    Features,
    Ids,
    IndexInfo,
    Latent,
    Record,
    SearchOptions,
    SearchResult,
    SearchTrace,
    SyncReport,
)


class UnreadableShardError(IndexStoreError):
    """A shard is damaged, or its storage does not answer."""


class Shard:
    """One shard, read-only; ids are its own.

    A call names the snapshot that it asks, so that all shards answer from one version. The last
    two stay open. ``source`` is a URI that snapshots which are not in the folder are copied from.
    """

    def __init__(self, folder: str, source: str | None = None) -> None:
        self._folder, self._source = Path(folder), source
        self._opened: dict[str, HashIndex] = {}
        self._lock = threading.Lock()

    def ask(self, snapshot: str, name: str, *arguments: Any) -> Any:
        """Call one of the methods below, or of ``HashIndex``, on a snapshot."""
        try:
            index, own = self._open(snapshot), getattr(self, f"_{name}", None)
            return own(index, *arguments) if own else getattr(index, name)(*arguments)
        except TimeLimitError:
            raise
        except (IndexStoreError, SourceError, OSError) as error:
            self._opened.pop(snapshot, None)  # storage that is back is opened again
            reason = system_reason(error) if isinstance(error, OSError) else str(error)
            raise UnreadableShardError(reason) from error

    def _open(self, snapshot: str) -> HashIndex:
        with self._lock:
            if snapshot not in self._opened:
                if self._source is not None:
                    fetch_snapshot(self._source, self._folder, snapshot, set(self._opened))
                index = HashIndex.open(self._folder / snapshot, read_only=True)
                for old in list(self._opened)[:-1]:
                    del self._opened[old]
                self._opened[snapshot] = index
            return self._opened[snapshot]

    def _hits(
        self, index: HashIndex, codes: Any, features: Any, options: SearchOptions, latent: Any
    ) -> tuple[list[Hits], SearchTrace]:
        trace = SearchTrace()
        return index.search_hits(codes, features, options, latent, trace), trace

    def _digest(self, index: HashIndex, ids: Sequence[int]) -> bytes | None:
        return index.file_digest(ids[0])

    def _verify(self, index: HashIndex) -> tuple[list[str], int]:
        rows: list[int] = []
        return index.verify(rows.append), sum(rows)

    def _process(self, index: HashIndex) -> int:
        return os.getpid()


class Answers(NamedTuple):
    """What shards said, by position; those that did not, and why (None: not in time)."""

    values: dict[int, Any]
    missing: dict[int, UnreadableShardError | None]


class Shards(Protocol):
    """Asks shards, here or elsewhere."""

    def ask(self, calls: Mapping[int, tuple[Any, ...]], *, patient: bool = False) -> Answers:
        """Call ``Shard.ask`` for each position; ``patient`` for what reads a whole shard."""
        ...


class OpenShards:
    """Shards opened in this process, asked one after the other: each search uses all cores."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[int, Shard] = {}

    def ask(self, calls: Mapping[int, tuple[Any, ...]], *, patient: bool = False) -> Answers:
        """Call ``Shard.ask`` for each position; other errors than unreadable shards are raised."""
        answers = Answers({}, {})
        for position, call in calls.items():
            shard = self._shards.setdefault(position, Shard(str(self._folder)))
            try:
                answers.values[position] = shard.ask(*call)
            except UnreadableShardError as error:
                answers.missing[position] = error
        return answers


class ShardedResult(SearchResult):
    """A result that says which shards it lacks."""

    missing: tuple[str, ...] = ()  # names of those that did not answer, or cannot be read


class ShardedIndex(Index):
    """Shards of one folder, which answer as one index of the same images would.

    Each shard answers the whole search and the answers are merged by (distance, id): ``bcs`` and
    ``es``, and all modes within a radius, give what one index gives. Without one, ``hds`` and
    ``acs`` order the pools of all shards, which hold the pool of one index and more, so that their
    results are at least as near. A change is published as a new version; see ``snapshots``. An
    instance may be used from many threads. ``shards`` asks them, by default in this process;
    ``write`` has another process make a change, given the method's name and its arguments. With
    ``require_all`` a shard that does not answer or cannot be read is an error; else the others
    answer, and ``SearchTrace.missing`` names it.
    """

    def __init__(
        self,
        folder: Path,
        encoder: EncoderLike | None = None,
        *,
        shards: Shards | None = None,
        write: Callable[..., Any] | None = None,
        require_all: bool = False,
        read_only: bool = False,
    ) -> None:
        self.path, self.encoder = folder, encoder
        self.require_all = require_all
        self._read_only = read_only
        self._shards: Shards = shards or OpenShards(folder)
        self._write = write
        self._read: tuple[tuple[int, int], Manifest] | None = None
        self._own = threading.local()  # the publication that this thread is making

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: EncoderLike | None = None,
        *,
        read_only: bool = False,
        require_all: bool = True,
    ) -> ShardedIndex:
        """Open a sharded index in this process; it needs no cluster."""
        index = cls(Path(path).absolute(), encoder, read_only=read_only, require_all=require_all)
        meta = index.meta  # says so if there is no such index
        if encoder is not None:
            require_same_model(index.path, meta, encoder)
        return index

    def close(self) -> None:
        """Nothing is left to end; what is mapped stays readable."""

    def __len__(self) -> int:
        return self.manifest.images

    @property
    def manifest(self) -> Manifest:
        """What it consists of now, whichever process has changed it."""
        try:
            status = (self.path / FILE_NAME).stat()
            seen = (status.st_ino, status.st_mtime_ns)
        except OSError:  # storage that is away; reading it the first time says so
            seen = (-1, -1) if self._read is None else self._read[0]
        if self._read is None or self._read[0] != seen:
            self._read = (seen, read_manifest(self.path))
        return self._read[1]

    @property
    def meta(self) -> Meta:
        return self.manifest.meta

    def info(self) -> IndexInfo:
        parts: list[IndexInfo] = list(self._some(lambda _: ("info",)).values.values())
        sums = ("images", "removed", "bytes_on_disk")
        totals = {name: sum(getattr(part, name) for part in parts) for name in sums}
        return replace(parts[0], path=str(self.path), commit=self.manifest.version, **totals)

    # Searching; `search` itself is in `Index`

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
    ) -> ShardedResult:
        """Search with encoded queries; see :class:`hashlens.types.Searcher`."""
        values, missing = self._search("search_encoded", codes, features, options, latent)
        parts = [SearchResult(global_ids(p, ids), distances) for p, (ids, distances) in values]
        result = ShardedResult(*merge(parts, options.k))
        result.missing = missing
        return result

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hits]:
        values, missing = self._search("hits", codes, features, options, latent)
        if trace is not None:  # shards work side by side
            traces = [own for _, (_, own) in values]
            trace.coarse += max(own.coarse for own in traces)
            trace.fine += max(own.fine for own in traces)
            trace.pools += map(sum, zip(*(own.pools for own in traces), strict=True))
            trace.missing += missing
        near = {"bcs": "hamming", "acs": "asymmetric"}.get(options.mode, "euclidean")
        found = ([_globally(position, hits) for hits in own] for position, (own, _) in values)
        merged, order = zip(*found, strict=True), attrgetter(near, "id")
        return [Hits(islice(heapq.merge(*hits, key=order), options.k)) for hits in merged]

    def _search(
        self, name: str, codes: Codes, features: Any, options: SearchOptions, latent: Latent | None
    ) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
        """Positions and answers of the shards that answer; the names of the others."""
        codes = check_width(codes, self.bits)
        latent = check_latent(latent, codes) if options.mode == "acs" else None

        def call(position: int) -> tuple[Any, ...]:
            left_out = options.exclude
            own = None if left_out is None else local_ids(position, left_out)
            return name, codes, features, replace(options, exclude=own), latent

        answers = self._some(call)
        return list(answers.values.items()), tuple(map(shard_name, sorted(answers.missing)))

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None = None, exclude: int | None = None
    ) -> NDArray[np.int64]:
        def call(position: int) -> tuple[Any, ...]:  # no other shard has such an id
            own = None if exclude is None else exclude - (position << SHARD_SHIFT)
            return "histogram", code, where, own

        counts: NDArray[np.int64] = sum(self._some(call).values.values())
        return counts

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """As ``HashIndex.duplicates``: all codes are gathered here and joined."""
        ids, codes, _ = self.encoded()
        return ArraySearcher(codes, ids=ids).duplicates(radius, None, progress)

    # Reading what is stored

    def ids(self) -> Ids:
        return np.concatenate([global_ids(p, own) for p, own in self._all("ids").items()])

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        wanted = None if ids is None else list_ids(ids)
        parts = self._stored("records", wanted)
        found = [one for p, own in parts.items() for one in _globally(p, own)]
        if wanted is None:
            return found
        by_id = {one.id: one for one in found}
        return [by_id[image_id] for image_id in wanted]

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        wanted = None if ids is None else list_ids(ids)
        parts = self._stored("encoded", wanted)
        columns = ((global_ids(p, own), *arrays) for p, (own, *arrays) in parts.items())
        held, codes, features = map(np.concatenate, zip(*columns, strict=True))
        if wanted is None:
            return held, codes, features
        order = np.argsort(held)
        order = order[np.searchsorted(held[order], wanted)]
        return held[order], codes[order], features[order]

    def uris(self) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for position, part in self._all("uris").items():
            for uri, own in part.items():
                total.setdefault(uri, []).extend((position << SHARD_SHIFT) + i for i in own)
        return total

    def label_counts(self) -> dict[str | None, int]:
        counts = self._some(lambda _: ("label_counts",)).values.values()
        return dict(sum(map(Counter, counts), Counter()))

    def file_digest(self, image_id: int) -> bytes | None:
        """As ``HashIndex.file_digest``; encoding on a cluster keeps no digests."""
        digest: bytes | None
        (digest,) = self._stored("digest", list_ids([image_id])).values()
        return digest

    def to_arrow(self) -> Any:
        """All images as a table, as ``HashIndex.to_arrow`` gives it."""
        parts = self._all("to_arrow")
        tables = [
            table.set_column(0, table.schema.field(0), [global_ids(p, table["id"].to_numpy())])
            for p, table in parts.items()
        ]
        return joined(tables)

    def export(self, path: str | Path, format: str) -> list[str]:
        """Refused: shards are made one index first."""
        raise IndexStoreError(
            f"{self.path}: an index in shards is exported as one index: `hashlens index reshard "
            f"{self.path} ONE.idx`, then `hashlens index export ONE.idx {path}`; in Python, "
            "`to_arrow` gives one table of all"
        )

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte of every shard against its checksum; a line for each damage."""
        found = self._all("verify").values()
        if progress is not None:
            progress(sum(rows for _, rows in found))
        return [line for lines, _ in found for line in lines]

    # Changes: each is published as one version

    def add(self, *arguments: Any, **options: Any) -> AddReport:
        """As ``HashIndex.add``, published as one version; after an error, with what was done."""
        if self._write is not None or self._read_only:
            return super().add(*arguments, **options)
        stopped: BaseException
        with self._publication():
            try:
                return super().add(*arguments, **options)
            except (HashlensError, KeyboardInterrupt) as error:
                stopped = error
        raise stopped

    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        """Add encoded images to the shard with the fewest images."""

        def change(publication: Publication) -> Ids:
            position = publication.smallest()
            store = publication.shard(position).store
            return global_ids(position, add_images(store, codes, features, rows))

        return self._publish(change, "add_rows", codes, features, rows)  # type: ignore[no-any-return]

    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features; ids and records stay."""
        wanted, codes = check_ids(ids), check_codes(codes)
        if len(codes) != len(wanted):
            raise InvalidInputError(f"codes: expected {len(wanted)}, one per id, got {len(codes)}")

        def change(publication: Publication) -> None:
            for index, at, own in publication.holders(wanted):
                values = None if features is None else np.asarray(features)[at]
                index.replace_encoded(own, codes[at], values)

        self._publish(change, "replace_encoded", wanted, codes, features)

    def _update(self, image_id: int, values: dict[str, Any], encoded: EncodedBatch | None) -> None:
        def change(publication: Publication) -> None:
            for index, _, own in publication.holders(np.array([image_id])):
                update_image(index.store, int(own[0]), values, encoded)

        self._publish(change, "_update", image_id, values, encoded)

    def remove(self, ids: Any) -> None:
        """Remove images; their space is freed by ``compact``."""
        wanted = check_ids(ids)

        def change(publication: Publication) -> None:
            for index, _, own in publication.holders(wanted):
                index.remove(own)

        self._publish(change, "remove", wanted)

    def compact(self) -> int:
        """Free the space of removed images in every shard; the number of rows dropped."""
        dropped: int = self._publish(lambda new: sum(s.compact() for s in new.all()), "compact")
        return dropped

    def add_shard(self) -> None:
        """Add an empty shard; what is added goes there until it is as full as the others."""

        def change(publication: Publication) -> None:
            publication.shard(len(publication))

        self._publish(change, "add_shard")

    def relocate(self, old: str | Path, new: str | Path) -> tuple[int, int]:
        """As ``HashIndex.relocate``; of the model only the images' files are found again."""

        def change(publication: Publication) -> tuple[int, int]:
            counts = [index.relocate(old, new) for index in publication.all()]
            return sum(moved for moved, _ in counts), sum(lost for _, lost in counts)

        return self._publish(change, "relocate", old, new)  # type: ignore[no-any-return]

    def copy(self, path: str | Path) -> int:
        """Copy it, as it is now, to a new folder, or bring an earlier copy up to date."""
        return copy_shards(self.path, Path(path))

    def sync(self, *arguments: Any, **options: Any) -> SyncReport:
        """Refused: a sharded index is changed by ``add`` and ``remove``."""
        raise IndexStoreError(
            f"{self.path}: an index in shards cannot be synced with a folder; use "
            "`hashlens index add` and `hashlens index remove`, or make one index of it with "
            "`hashlens index reshard`"
        )

    def together(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Make changes of several callers as one version; a result or an error for each."""
        try:
            with self._publication():
                return [getattr(self, name)(*arguments) for name, arguments in calls]
        except Exception as error:  # nothing was published: whose it is, is found one by one
            if len(calls) == 1:
                return [error]
        return [outcome for call in calls for outcome in self.together([call])]

    def _publish(self, change: Callable[[Publication], Any], name: str, *arguments: Any) -> Any:
        """Make a change here, or have the process make it that makes all changes."""
        if self._read_only:
            raise IndexStoreError(f"{self.path}: opened read-only; open it without read_only")
        if self._write is not None:
            return self._write(name, *arguments)
        with self._publication() as publication:
            return change(publication)

    @contextmanager
    def _publication(self) -> Iterator[Publication]:
        """The change that this thread is making, or a new one."""
        if (own := getattr(self._own, "publication", None)) is not None:
            yield own
            return
        with publishing(self.path) as self._own.publication:
            try:
                yield self._own.publication
            finally:
                self._own.publication = None

    # Asking the shards

    def _ask(
        self,
        calls: Callable[[int], dict[int, tuple[Any, ...]]],
        *,
        partial: bool = False,
        patient: bool = False,
    ) -> Answers:
        """Ask shards, all at one version; raises if one is missing, or with ``partial`` if all are.

        ``calls`` says what to ask which of so many shards.
        """
        while True:
            manifest = self.manifest
            wanted = calls(len(manifest.shards)).items()
            named = {p: (manifest.shards[p].folder, *call) for p, call in wanted}
            values, missing = self._shards.ask(named, patient=patient)
            if any(missing.values()) and self.manifest.version != manifest.version:
                continue  # the version was gone meanwhile
            if missing and (self.require_all or not partial or not values):
                raise self._unanswered(missing)
            return Answers(dict(sorted(values.items())), missing)

    def _some(self, call: Callable[[int], tuple[Any, ...]]) -> Answers:
        """The answers of those shards that answer."""
        return self._ask(lambda shards: {p: call(p) for p in range(shards)}, partial=True)

    def _all(self, *call: Any) -> dict[int, Any]:
        """The answers of all shards to one call, which may take long."""
        return self._ask(lambda shards: dict.fromkeys(range(shards), call), patient=True).values

    def _stored(self, name: str, ids: list[int] | None) -> dict[int, Any]:
        """What each shard says of those of the ids that it holds, or of all."""
        if not ids:
            return self._all(name, ids)
        wanted = np.array(ids, np.int64)
        return self._ask(
            lambda shards: {p: (name, own.tolist()) for p, _, own in holders(shards, wanted)}
        ).values

    def _unanswered(self, missing: Mapping[int, UnreadableShardError | None]) -> IndexStoreError:
        for position, error in missing.items():
            if error is not None:
                return IndexStoreError(f"{self.path}: {shard_name(position)}: {error}")
        return IndexStoreError(
            f"{self.path}: {', '.join(map(shard_name, sorted(missing)))} did not answer in time; "
            "look at the cluster with `serve status`, or give more replicas"
        )


def _globally(position: int, own: Iterable[Any]) -> list[Any]:
    """Hits or records of a shard, with ids of the whole index."""
    return [one._replace(id=one.id + (position << SHARD_SHIFT)) for one in own]


_FAR: dict[str, Any] = {"u": np.uint16(65535), "f": np.float32(np.inf)}


def merge(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The k nearest of several results of the same q queries."""
    ids = np.concatenate([part.ids for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    distances = np.where(ids < 0, _FAR[distances.dtype.kind], distances)
    # padding goes last, also behind a real result that is as far as can be
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), distances), axis=1)[:, :k]
    return SearchResult(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )
