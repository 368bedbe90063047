"""``ShardedIndex``: shards that answer as one index, in this process or on a Ray cluster."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_bytes
from hashlens.distributed.snapshots import (
    SHARD_SHIFT,
    Manifest,
    ManifestFile,
    Publication,
    Snapshot,
    copy_shards,
    fetch_snapshot,
    global_ids,
    local_ids,
    publishing,
)
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError
from hashlens.files import uri_path
from hashlens.index.hash_index import HashIndex
from hashlens.index.protocol import Hits, Index
from hashlens.index.ranking import ArraySearcher, check_latent
from hashlens.index.rows import check_ids, check_width, list_ids
from hashlens.index.writing import EncodedImage, GivenRows, add_images, update_image
from hashlens.types import (
    AddReport,
    Codes,
    DuplicateGroups,
    EncoderLike,
    Features,
    Hit,
    Ids,
    IndexInfo,
    Latent,
    Record,
    SearchOptions,
    SearchResult,
    SearchTrace,
    SyncReport,
)


class Shard:
    """One shard, read-only; its answers have ids of the whole index.

    A call names the snapshot that it asks, so that all shards answer from one version. The last
    two stay open. ``source`` is a URI that snapshots which are not in the folder are copied from.
    """

    def __init__(self, folder: str, position: int, source: str | None = None) -> None:
        self._folder, self.position, self._source = Path(folder), position, source
        self._opened: dict[str, HashIndex] = {}
        self._lock = threading.Lock()

    def ask(self, snapshot: str, name: str, *arguments: Any) -> Any:
        """Call one of the methods below, or of ``HashIndex``, on a snapshot."""
        index, own = self._open(snapshot), getattr(self, f"_{name}", None)
        try:
            return own(index, *arguments) if own else getattr(index, name)(*arguments)
        except (IndexStoreError, OSError):
            self._opened.pop(snapshot, None)  # storage that is back is opened again
            raise

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

    def _search(
        self, index: HashIndex, codes: Any, features: Any, options: SearchOptions, latent: Any
    ) -> SearchResult:
        found = index.search_encoded(codes, features, self._own(options), latent)
        return SearchResult(global_ids(self.position, found.ids), found.distances)

    def _hits(
        self, index: HashIndex, codes: Any, features: Any, options: SearchOptions, latent: Any
    ) -> tuple[list[list[Hit]], SearchTrace]:
        trace = SearchTrace()
        found = index.search_hits(codes, features, self._own(options), latent, trace)
        return [[self._global(hit) for hit in hits] for hits in found], trace

    def _own(self, options: SearchOptions) -> SearchOptions:
        if options.exclude is None:
            return options
        return replace(options, exclude=local_ids(self.position, options.exclude))

    def _global(self, named: Any) -> Any:
        return named._replace(id=named.id + (self.position << SHARD_SHIFT))

    def _local(self, ids: Sequence[int] | None) -> list[int] | None:
        if ids is None:
            return None
        own: list[int] = local_ids(self.position, np.array(ids, np.int64)).tolist()
        return own

    def _histogram(self, index: HashIndex, code: Codes, where: Any, exclude: int | None) -> Any:
        own = local_ids(self.position, np.array([-1 if exclude is None else exclude]))[0]
        return index.histogram(code, where, None if own < 0 else int(own))

    def _ids(self, index: HashIndex) -> Ids:
        return global_ids(self.position, index.ids())

    def _records(self, index: HashIndex, ids: Sequence[int] | None) -> list[Record]:
        return [self._global(record) for record in index.records(self._local(ids))]

    def _encoded(self, index: HashIndex, ids: Sequence[int] | None) -> tuple[Any, ...]:
        found, *arrays = index.encoded(self._local(ids))
        return (global_ids(self.position, found), *arrays)

    def _file_digest(self, index: HashIndex, ids: Sequence[int]) -> bytes | None:
        return index.file_digest(int(local_ids(self.position, np.array(ids))[0]))

    def _uris(self, index: HashIndex) -> dict[str, list[int]]:
        first = self.position << SHARD_SHIFT
        return {uri: [first + own for own in ids] for uri, ids in index.uris().items()}

    def _to_arrow(self, index: HashIndex) -> Any:
        table = index.to_arrow()
        ids = global_ids(self.position, table["id"].to_numpy())
        return table.set_column(0, table.schema.field("id"), [ids])

    def _verify(self, index: HashIndex) -> tuple[list[str], int]:
        rows: list[int] = []
        return index.verify(rows.append), sum(rows)

    def _process(self, index: HashIndex) -> int:
        return os.getpid()


class Answers(NamedTuple):
    """What the shards said, by their positions, and those that did not answer in time."""

    values: dict[int, Any]
    missing: tuple[int, ...] = ()


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
        """Call methods of :class:`Shard` by name; errors are raised."""
        values = {}
        for position, call in calls.items():
            if position not in self._shards:
                self._shards[position] = Shard(str(self._folder), position)
            values[position] = self._shards[position].ask(*call)
        return Answers(values)


class ShardedResult(SearchResult):
    """A result that says which shards it lacks."""

    missing: tuple[str, ...] = ()  # names of those that did not answer

    @property
    def partial(self) -> bool:
        """Whether a shard is missing."""
        return bool(self.missing)


class ShardedIndex(Index):
    """Shards of one folder, which answer as one index of the same images would.

    Each shard answers the whole search and the answers are merged by (distance, id): ``bcs`` and
    ``es``, and all modes within a radius, give what one index gives. Without one, ``hds`` and
    ``acs`` order the pools of all shards, which hold the pool of one index and more, so that their
    results are at least as near. A change is published as a new version; see ``snapshots``. An
    instance may be used from many threads. ``shards`` asks them, by default in this process;
    ``write`` has another process make a change, given the method's name and its arguments.
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
        self._file = ManifestFile(folder)
        self._shards: Shards = shards or OpenShards(folder)
        self._write = write
        self._own = threading.local()  # the publication that this thread is making

    @classmethod
    def open(
        cls, path: str | Path, encoder: EncoderLike | None = None, *, read_only: bool = False
    ) -> ShardedIndex:
        """Open a sharded index in this process; it needs no cluster."""
        index = cls(Path(path).absolute(), encoder, read_only=read_only)
        own = index.fingerprint
        if encoder is not None and encoder.fingerprint != own:
            raise IndexStoreError(
                f"{path}: made by model {own[:12]}, got model {encoder.fingerprint[:12]}; use the "
                "index's own model, or index again"
            )
        return index

    def close(self) -> None:
        """Nothing is left to end; what is mapped stays readable."""

    def __len__(self) -> int:
        return self.manifest.images

    @property
    def manifest(self) -> Manifest:
        """What it consists of now."""
        return self._file.current()

    @property
    def shards(self) -> tuple[Snapshot, ...]:
        """The shards as they are published now."""
        return self.manifest.shards

    @property
    def model(self) -> str | None:
        stored = self.manifest.model
        return str(uri_path(stored)) if stored else None

    @property
    def bits(self) -> int:
        return self.manifest.bits

    @property
    def feature_dim(self) -> int:
        return self.manifest.feature_dim

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def info(self) -> IndexInfo:
        parts: list[IndexInfo] = list(self._ask_some("info").values())
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
        codes, latent = self._checked(codes, options, latent)
        answers = self._some("search", codes, features, options, latent)
        parts = [answers.values[position] for position in sorted(answers.values)]
        result = ShardedResult(*merge(parts, options.k))
        result.missing = self._names(answers.missing)
        return result

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hits]:
        codes, latent = self._checked(codes, options, latent)
        answers = self._some("hits", codes, features, options, latent)
        found = [answers.values[position] for position in sorted(answers.values)]
        if trace is not None:  # shards work side by side
            trace.coarse += max(own.coarse for _, own in found)
            trace.fine += max(own.fine for _, own in found)
            trace.pools += [
                sum(sizes) for sizes in zip(*(own.pools for _, own in found), strict=True)
            ]
            trace.missing += self._names(answers.missing)
        near = {"bcs": "hamming", "acs": "asymmetric"}.get(options.mode, "euclidean")

        def order(hit: Hit) -> tuple[float, int]:
            return getattr(hit, near), hit.id

        merged = zip(*(hits for hits, _ in found), strict=True)
        return [Hits(islice(heapq.merge(*parts, key=order), options.k)) for parts in merged]

    def _checked(
        self, codes: Codes, options: SearchOptions, latent: Latent | None
    ) -> tuple[Codes, Latent | None]:
        codes = check_width(codes, self.bits)
        return codes, check_latent(latent, codes) if options.mode == "acs" else None

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None = None, exclude: int | None = None
    ) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = sum(self._ask_some("histogram", code, where, exclude).values())
        return counts

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """As ``HashIndex.duplicates``: all codes are gathered here and joined."""
        ids, codes, _ = self.encoded()
        return ArraySearcher(codes, ids=ids).duplicates(radius, None, progress)

    # Reading what is stored

    def ids(self) -> Ids:
        return np.concatenate([np.zeros(0, np.int64), *self._ask_all("ids").values()])

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        if ids is None:
            return [one for part in self._ask_all("records", None).values() for one in part]
        wanted = list_ids(ids)
        by_id = {one.id: one for part in self._of_holders("records", wanted) for one in part}
        return [by_id[image_id] for image_id in wanted]

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        if ids is None:
            wanted, parts = None, list(self._ask_all("encoded", None).values())
        else:
            wanted = list_ids(ids)
            parts = self._of_holders("encoded", wanted)
        if not parts:
            codes = np.zeros((0, code_bytes(self.bits)), np.uint8)
            return np.zeros(0, np.int64), codes, np.zeros((0, self.feature_dim), np.float32)
        held, codes, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        if wanted is None:
            return held, codes, features
        order = np.argsort(held)
        order = order[np.searchsorted(held[order], wanted)]
        return held[order], codes[order], features[order]

    def uris(self) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for part in self._ask_all("uris").values():
            for uri, ids in part.items():
                total.setdefault(uri, []).extend(ids)
        return total

    def label_counts(self) -> dict[str | None, int]:
        total: dict[str | None, int] = {}
        for counts in self._ask_some("label_counts").values():
            for label, count in counts.items():
                total[label] = total.get(label, 0) + count
        return total

    def file_digest(self, image_id: int) -> bytes | None:
        """As ``HashIndex.file_digest``; encoding on a cluster keeps no digests."""
        digest: bytes | None
        (digest,) = self._of_holders("file_digest", list_ids([image_id]))
        return digest

    def to_arrow(self) -> Any:
        """All images as a table, as ``HashIndex.to_arrow`` gives it."""
        tables = list(self._ask_all("to_arrow").values())
        import pyarrow as pa

        return pa.concat_tables(tables)

    def export(self, path: str | Path, format: str) -> None:
        """Refused: shards are made one index first."""
        raise IndexStoreError(
            f"{self.path}: an index in shards is exported as one index: `hashlens index reshard "
            f"{self.path} ONE.idx`, then `hashlens index export ONE.idx {path}`; in Python, "
            "`to_arrow` gives one table of all"
        )

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte of every shard against its checksum; a line for each damage."""
        found = self._ask_all("verify")
        if progress is not None:
            progress(sum(rows for _, rows in found.values()))
        return [line for position in sorted(found) for line in found[position][0]]

    # Changes: each is published as one version

    def add(self, *arguments: Any, **options: Any) -> AddReport:
        """As ``HashIndex.add``, published as one version; after an error, with what was done."""
        if self._write is not None or self._read_only:
            return super().add(*arguments, **options)
        stopped: BaseException | None = None
        with publishing(self.path) as self._own.publication:
            try:
                report = super().add(*arguments, **options)
            except (HashlensError, KeyboardInterrupt) as error:
                stopped = error
            finally:
                self._own.publication = None
        if stopped is not None:
            raise stopped
        return report

    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        """Add encoded images to the shard with the fewest images."""

        def change(publication: Publication) -> Ids:
            position = publication.smallest()
            index = publication.shard(position)
            return global_ids(position, add_images(index.store, codes, features, rows))

        return self._publish(change, "add_rows", codes, features, rows)  # type: ignore[no-any-return]

    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features; ids and records stay."""
        wanted, codes = check_ids(ids), check_codes(codes)
        if len(codes) != len(wanted):
            raise InvalidInputError(f"codes: expected {len(wanted)}, one per id, got {len(codes)}")

        def change(publication: Publication) -> None:
            for position, at, own in self._held_in(len(publication.manifest.shards), wanted):
                values = None if features is None else np.asarray(features)[at]
                publication.shard(position).replace_encoded(own, codes[at], values)

        self._publish(change, "replace_encoded", wanted, codes, features)

    def _update(self, image_id: int, changes: dict[str, Any], encoded: EncodedImage | None) -> None:
        def change(publication: Publication) -> None:
            for position, _, (own,) in self._held_in(
                len(publication.manifest.shards), np.array([image_id])
            ):
                update_image(publication.shard(position).store, int(own), changes, encoded)

        self._publish(change, "_update", image_id, changes, encoded)

    def remove(self, ids: Any) -> None:
        """Remove images; their space is freed by ``compact``."""
        wanted = check_ids(ids)

        def change(publication: Publication) -> None:
            for position, _, own in self._held_in(len(publication.manifest.shards), wanted):
                publication.shard(position).remove(own)

        self._publish(change, "remove", wanted)

    def compact(self) -> int:
        """Free the space of removed images in every shard; the number of rows dropped."""

        def change(publication: Publication) -> int:
            positions = range(len(publication.manifest.shards))
            return sum(publication.shard(position).compact() for position in positions)

        return self._publish(change, "compact")  # type: ignore[no-any-return]

    def add_shard(self) -> None:
        """Add an empty shard; what is added goes there until it is as full as the others."""

        def change(publication: Publication) -> None:
            publication.shard(len(publication.manifest.shards))

        self._publish(change, "add_shard")

    def relocate(self, old: str | Path, new: str | Path) -> tuple[int, int]:
        """As ``HashIndex.relocate``; of the model only the images' files are found again."""

        def change(publication: Publication) -> tuple[int, int]:
            positions = range(len(publication.manifest.shards))
            counts = [publication.shard(position).relocate(old, new) for position in positions]
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
            with publishing(self.path) as self._own.publication:
                return [getattr(self, name)(*arguments) for name, arguments in calls]
        except Exception as error:  # nothing was published: whose it is, is found one by one
            if len(calls) == 1:
                return [error]
        finally:
            self._own.publication = None
        return [outcome for call in calls for outcome in self.together([call])]

    def _publish(self, change: Callable[[Publication], Any], name: str, *arguments: Any) -> Any:
        """Make a change here, or have the process make it that makes all changes."""
        if self._read_only:
            raise IndexStoreError(f"{self.path}: opened read-only; open it without read_only")
        if self._write is not None:
            return self._write(name, *arguments)
        if (own := getattr(self._own, "publication", None)) is not None:
            return change(own)
        with publishing(self.path) as publication:
            return change(publication)

    # Asking the shards

    def _held_in(self, shards: int, ids: Ids) -> list[tuple[int, NDArray[np.int64], Ids]]:
        """For each shard that holds some of the ids: which of them, and its own ids."""
        unknown = ids[(ids < 0) | (ids >> SHARD_SHIFT >= shards)]
        if len(unknown):
            raise InvalidInputError(f"id {int(unknown[0])}: no such image in the index")
        held = []
        for position in range(shards):
            own = local_ids(position, ids)
            at = np.flatnonzero(own >= 0)
            if len(at):
                held.append((position, at, own[at]))
        return held

    def _names(self, positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"shard-{position:04d}" for position in sorted(positions))

    def _ask(self, calls_of: Callable[[int], dict[int, Any]], patient: bool = False) -> Answers:
        """Ask shards, all at one version; of the next one if this one is gone meanwhile."""
        while True:
            manifest = self.manifest
            calls = calls_of(len(manifest.shards))
            named = {p: (manifest.shards[p].folder, *call) for p, call in calls.items()}
            try:
                return self._shards.ask(named, patient=patient)
            except IndexStoreError:
                if self.manifest.version == manifest.version:
                    raise

    def _some(self, *call: Any, patient: bool = False) -> Answers:
        """The answers of the shards that answer; raises if all must, or none does."""
        answers = self._ask(lambda shards: dict.fromkeys(range(shards), call), patient)
        if answers.missing and (self.require_all or not answers.values):
            raise self._unanswered(answers.missing)
        return answers

    def _ask_some(self, *call: Any) -> dict[int, Any]:
        return self._some(*call).values

    def _ask_all(self, *call: Any) -> dict[int, Any]:
        """The answers of all shards to what may take long; raises if one does not answer."""
        answers = self._some(*call, patient=True)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return dict(sorted(answers.values.items()))

    def _of_holders(self, name: str, ids: Sequence[int]) -> list[Any]:
        """Ask each shard for those of the ids that it holds; raises if one does not answer."""
        wanted = np.array(ids, np.int64)
        answers = self._ask(
            lambda shards: {
                position: (name, wanted[at].tolist())
                for position, at, _ in self._held_in(shards, wanted)
            }
        )
        if answers.missing:
            raise self._unanswered(answers.missing)
        return list(answers.values.values())

    def _unanswered(self, missing: Sequence[int]) -> IndexStoreError:
        return IndexStoreError(
            f"{self.path}: {', '.join(self._names(missing))} did not answer in time; look at the "
            "cluster with `serve status`, or give more replicas"
        )


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
