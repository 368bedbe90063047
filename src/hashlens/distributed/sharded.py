"""``ShardedIndex``: shards that answer as one index, in this process or on a Ray cluster."""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes
from hashlens.distributed.snapshots import (
    FILE_NAME,
    SHARD_SHIFT,
    Answers,
    Manifest,
    OpenShards,
    Publication,
    Question,
    Shards,
    copy_shards,
    global_ids,
    holders,
    local_ids,
    publishing,
    read_manifest,
    shard_name,
)
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError
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

P = ParamSpec("P")
T = TypeVar("T")
Change: TypeAlias = Callable[["ShardedIndex"], Any]  # carried to the process that makes changes


def _published(
    change: Callable[Concatenate[ShardedIndex, P], T],
) -> Callable[Concatenate[ShardedIndex, P], T]:
    """A method that changes ``self._new``: done here, or by the process that makes all changes."""

    @wraps(change)
    def publish(self: ShardedIndex, /, *arguments: P.args, **named: P.kwargs) -> T:
        if self._read_only:
            raise IndexStoreError(f"{self.path}: opened read-only; open it without read_only")
        if self._write is not None:
            result: T = self._write(methodcaller(change.__name__, *arguments, **named))
            return result
        with self._publication():
            return change(self, *arguments, **named)

    return publish


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
    ``write`` has another process make a change, given as a call of one of the methods. With
    ``require_all`` a shard that does not answer or cannot be read is an error; else the others
    answer, and ``SearchTrace.missing`` names it.
    """

    def __init__(
        self,
        folder: Path,
        encoder: EncoderLike | None = None,
        *,
        shards: Shards | None = None,
        write: Callable[[Change], Any] | None = None,
        require_all: bool = False,
        read_only: bool = False,
    ) -> None:
        self.path, self.encoder = folder, encoder
        self.require_all = require_all
        self._read_only = read_only
        self._shards: Shards = shards or OpenShards(folder)
        self._write = write
        self._read: tuple[tuple[int, int], Manifest] | None = None
        self._own = threading.local()

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
        with suppress(OSError):  # where storage is away, what was read holds
            status = (self.path / FILE_NAME).stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if self._read is None or self._read[0] != seen:
                self._read = (seen, read_manifest(self.path))
        return read_manifest(self.path) if self._read is None else self._read[1]

    @property
    def meta(self) -> Meta:
        return self.manifest.meta

    def info(self) -> IndexInfo:
        answers = self._ask(lambda _: HashIndex.info, partly=True)
        parts: list[IndexInfo] = list(answers.values.values())
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
        values, missing = self._search(HashIndex.search_encoded, codes, features, options, latent)
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
        values, missing = self._search(_hits, codes, features, options, latent)
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
        self,
        search: Callable[..., T],
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None,
    ) -> tuple[list[tuple[int, T]], tuple[str, ...]]:
        """Positions and answers of the shards that answer; the names of the others."""
        codes = check_width(codes, self.bits)
        latent = check_latent(latent, codes) if options.mode == "acs" else None

        def question(position: int) -> Question:
            left_out = options.exclude
            own = None if left_out is None else local_ids(position, left_out)
            asked = replace(options, exclude=own)
            return partial(search, codes=codes, features=features, options=asked, latent=latent)

        answers = self._ask(question, partly=True)
        return list(answers.values.items()), tuple(map(shard_name, sorted(answers.missing)))

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None = None, exclude: int | None = None
    ) -> NDArray[np.int64]:
        def question(position: int) -> Question:  # no other shard has such an id
            own = None if exclude is None else exclude - (position << SHARD_SHIFT)
            return methodcaller("histogram", code, where, own)

        counts: NDArray[np.int64] = sum(self._ask(question, partly=True).values.values())
        return counts

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """As ``HashIndex.duplicates``: all codes are gathered here and joined."""
        ids, codes, _ = self.encoded()
        return ArraySearcher(codes, ids=ids).duplicates(radius, None, progress)

    # Reading what is stored

    def ids(self) -> Ids:
        return np.concatenate([global_ids(p, own) for p, own in self._all(HashIndex.ids).items()])

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        wanted = None if ids is None else list_ids(ids)
        parts = self._stored(HashIndex.records, wanted)
        found = {one.id: one for p, own in parts.items() for one in _globally(p, own)}
        return [found[image_id] for image_id in (found if wanted is None else wanted)]

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        wanted = None if ids is None else list_ids(ids)
        parts = self._stored(HashIndex.encoded, wanted)
        columns = ((global_ids(p, own), *arrays) for p, (own, *arrays) in parts.items())
        held, codes, features = map(np.concatenate, zip(*columns, strict=True))
        if wanted is None:
            return held, codes, features
        order = np.argsort(held)
        order = order[np.searchsorted(held[order], wanted)]
        return held[order], codes[order], features[order]

    def uris(self) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for position, part in self._all(HashIndex.uris).items():
            for uri, own in part.items():
                total.setdefault(uri, []).extend((position << SHARD_SHIFT) + i for i in own)
        return total

    def label_counts(self) -> dict[str | None, int]:
        counts = self._ask(lambda _: HashIndex.label_counts, partly=True).values.values()
        return dict(sum(map(Counter, counts), Counter()))

    def file_digest(self, image_id: int) -> bytes | None:
        """As ``HashIndex.file_digest``; encoding on a cluster keeps no digests."""
        digest: bytes | None
        one = list_ids([image_id])
        (digest,) = self._stored(lambda index, ids: index.file_digest(*ids), one).values()
        return digest

    def to_arrow(self) -> Any:
        """All images as a table, as ``HashIndex.to_arrow`` gives it."""
        tables = []
        for part, table in self._all(HashIndex.to_arrow).items():
            ids = [global_ids(part, table["id"].to_numpy())]
            tables.append(table.set_column(0, table.schema.field(0), ids))
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
        found = self._all(_verify).values()
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

    @_published
    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        """Add encoded images to the shard with the fewest images."""
        position = self._new.smallest()
        store = self._new.shard(position).store
        return global_ids(position, add_images(store, codes, features, rows))

    @_published
    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features; ids and records stay."""
        wanted, codes = check_ids(ids), check_codes(codes)
        if len(codes) != len(wanted):
            raise InvalidInputError(f"codes: expected {len(wanted)}, one per id, got {len(codes)}")
        for index, at, own in self._new.holders(wanted):
            values = None if features is None else np.asarray(features)[at]
            index.replace_encoded(own, codes[at], values)

    @_published
    def _update(self, image_id: int, values: dict[str, Any], encoded: EncodedBatch | None) -> None:
        for index, _, own in self._new.holders(np.array([image_id])):
            update_image(index.store, int(own[0]), values, encoded)

    @_published
    def remove(self, ids: Any) -> None:
        """Remove images; their space is freed by ``compact``."""
        for index, _, own in self._new.holders(check_ids(ids)):
            index.remove(own)

    @_published
    def compact(self) -> int:
        """Free the space of removed images in every shard; the number of rows dropped."""
        return sum(index.compact() for index in self._new.shards())

    @_published
    def add_shard(self) -> None:
        """Add an empty shard; what is added goes there until it is as full as the others."""
        self._new.shard(len(self._new))

    @_published
    def relocate(self, old: str | Path, new: str | Path) -> tuple[int, int]:
        """As ``HashIndex.relocate``; of the model only the images' files are found again."""
        moved, lost = zip(*(one.relocate(old, new) for one in self._new.shards()), strict=True)
        return sum(moved), sum(lost)

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

    def together(self, changes: Sequence[Change]) -> list[Any]:
        """Make changes of several callers as one version; a result or an error for each."""
        try:
            with self._publication():
                return [change(self) for change in changes]
        except Exception as error:  # nothing was published: whose it is, is found one by one
            if len(changes) == 1:
                return [error]
        return [outcome for change in changes for outcome in self.together([change])]

    @contextmanager
    def _publication(self) -> Iterator[None]:
        """A block that makes a version, or goes on with the one that this thread is making."""
        if hasattr(self._own, "new"):
            yield
            return
        with publishing(self.path) as self._own.new:
            try:
                yield
            finally:
                del self._own.new

    @property
    def _new(self) -> Publication:
        """The version that this thread is making."""
        made: Publication = self._own.new
        return made

    # Asking the shards

    def _ask(
        self,
        question: Callable[[int], Question],
        positions: Iterable[int] = (),
        *,
        partly: bool = False,
        patient: bool = False,
    ) -> Answers:
        """Ask shards at one version; raises if one is missing, or with ``partly`` if all are."""
        while True:
            manifest = self.manifest
            asked = positions or range(len(manifest.shards))
            calls = {p: (manifest.shards[p].folder, question(p)) for p in asked}
            values, missing = self._shards.ask(calls, patient=patient)
            if any(missing.values()) and self.manifest.version != manifest.version:
                continue  # the version was gone meanwhile
            if not missing or (values and partly and not self.require_all):
                return Answers(dict(sorted(values.items())), missing)
            for position, error in missing.items():
                if error is not None:
                    raise IndexStoreError(f"{self.path}: {shard_name(position)}: {error}")
            raise IndexStoreError(
                f"{self.path}: {', '.join(map(shard_name, sorted(missing)))} did not answer in "
                "time; look at the cluster with `serve status`, or give more replicas"
            )

    def _all(self, question: Callable[[HashIndex], T]) -> dict[int, T]:
        """The answers of all shards to one question, which may take long."""
        return self._ask(lambda _: question, patient=True).values

    def _stored(self, read: Callable[..., T], ids: list[int] | None) -> dict[int, T]:
        """What each shard says of those of the ids that it holds, or of all."""
        if not ids:
            return self._all(partial(read, ids=ids))
        held = holders(len(self.manifest.shards), np.array(ids, np.int64))
        wanted = {position: own.tolist() for position, _, own in held}
        return self._ask(lambda position: partial(read, ids=wanted[position]), wanted).values


def _hits(index: HashIndex, **search: Any) -> tuple[list[Hits], SearchTrace]:
    trace = SearchTrace()
    return index.search_hits(**search, trace=trace), trace


def _verify(index: HashIndex) -> tuple[list[str], int]:
    rows: list[int] = []
    return index.verify(rows.append), sum(rows)


def _globally(position: int, own: Iterable[Any]) -> list[Any]:
    """Hits or records of a shard, with ids of the whole index."""
    return [one._replace(id=one.id + (position << SHARD_SHIFT)) for one in own]


def merge(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The k nearest of several results of the same q queries."""
    ids, distances = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    # padding goes last, also behind a real result that is as far as can be
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), distances), axis=1)[:, :k]
    return SearchResult(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )
