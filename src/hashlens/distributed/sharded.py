"""``ShardedIndex``: shards that answer as one index, in this process or on a Ray cluster."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
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
    """One shard, opened read-only; its answers have ids of the whole index.

    When another version is published, the next call is answered by it; calls under way end on the
    one that they began with.
    """

    def __init__(self, folder: str, position: int) -> None:
        self._folder, self.position = Path(folder), position
        self._manifest = ManifestFile(self._folder)
        self._opened: tuple[str, HashIndex] | None = None

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call one of the methods below by its name."""
        return getattr(self, name)(*arguments)

    @property
    def _index(self) -> HashIndex:
        name = self._manifest.current().shards[self.position].folder
        opened = self._opened
        if opened is None or opened[0] != name:
            opened = self._opened = name, HashIndex.open(self._folder / name, read_only=True)
        return opened[1]

    def search(
        self, codes: Codes, features: Features | None, options: SearchOptions, latent: Latent | None
    ) -> SearchResult:
        """``search_encoded`` of this shard."""
        found = self._index.search_encoded(codes, features, self._own(options), latent)
        return SearchResult(global_ids(self.position, found.ids), found.distances)

    def hits(
        self, codes: Codes, features: Features | None, options: SearchOptions, latent: Latent | None
    ) -> tuple[list[list[Hit]], SearchTrace]:
        """``search_hits`` of this shard, and what the search did."""
        trace = SearchTrace()
        found = self._index.search_hits(codes, features, self._own(options), latent, trace)
        return [[self._global(hit) for hit in hits] for hits in found], trace

    def _own(self, options: SearchOptions) -> SearchOptions:
        if options.exclude is None:
            return options
        return replace(options, exclude=local_ids(self.position, options.exclude))

    def _global(self, named: Any) -> Any:
        return named._replace(id=named.id + (self.position << SHARD_SHIFT))

    def _local(self, ids: Sequence[int]) -> list[int]:
        own: list[int] = local_ids(self.position, np.array(ids, np.int64)).tolist()
        return own

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None, exclude: int | None
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code."""
        (own,) = self._local([-1 if exclude is None else exclude])
        return self._index.histogram(code, where, None if own < 0 else own)

    def ids(self) -> Ids:
        """Ids of all living images, ascending."""
        return global_ids(self.position, self._index.ids())

    def records(self, ids: Sequence[int] | None) -> list[Record]:
        """Records of images that are here; of all without ``ids``."""
        found = self._index.records(None if ids is None else self._local(ids))
        return [self._global(record) for record in found]

    def encoded(self, ids: Sequence[int] | None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features of images that are here; of all without ``ids``."""
        found, *arrays = self._index.encoded(None if ids is None else self._local(ids))
        return (global_ids(self.position, found), *arrays)  # type: ignore[return-value]

    def file_digest(self, ids: Sequence[int]) -> bytes | None:
        """Digest of the file of one image that is here."""
        return self._index.file_digest(self._local(ids)[0])

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        return {
            uri: global_ids(self.position, np.array(ids, np.int64)).tolist()
            for uri, ids in self._index.uris().items()
        }

    def label_counts(self) -> dict[str | None, int]:
        """Living images with each label."""
        return self._index.label_counts()

    def info(self) -> dict[str, Any]:
        """``IndexInfo`` as a dictionary."""
        return asdict(self._index.info())

    def to_arrow(self) -> Any:
        """``HashIndex.to_arrow`` of this shard."""
        table = self._index.to_arrow()
        ids = global_ids(self.position, table["id"].to_numpy())
        return table.set_column(0, table.schema.field("id"), [ids])

    def verify(self) -> tuple[list[str], int]:
        """Lines for what is damaged in this shard, and the number of rows that were read."""
        rows: list[int] = []
        return self._index.verify(rows.append), sum(rows)

    def process(self) -> int:
        """The process that answers."""
        return os.getpid()

    def check_health(self) -> None:
        """Raise where the shard cannot be read; Ray Serve asks regularly."""
        self._index.store.meta()


class Answers(NamedTuple):
    """What the shards said, by their positions, and those that did not answer in time."""

    values: dict[int, Any]
    missing: tuple[int, ...] = ()


class Shards(Protocol):
    """Asks shards, here or elsewhere."""

    def ask(self, calls: Mapping[int, tuple[Any, ...]], *, patient: bool = False) -> Answers:
        """Call methods of :class:`Shard` by name; ``patient`` for what reads a whole shard."""
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
        parts = [IndexInfo(**part) for part in self._ask_some("info").values()]
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

    def sync(
        self,
        folder: str | Path,
        paths: Sequence[Path],
        labels: Sequence[Any] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        strict: bool = False,
        kept: Sequence[Path] = (),
        verify_content: bool = False,
    ) -> SyncReport:
        """Refused: a sharded index is changed by ``add`` and ``remove``."""
        raise IndexStoreError(
            f"{self.path}: an index in shards cannot be synced with a folder; use "
            "`hashlens index add` and `hashlens index remove`, or make one index of it with "
            "`hashlens index reshard`"
        )

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

    def _some(self, *call: Any, patient: bool = False) -> Answers:
        """The answers of the shards that answer; raises if all must, or none does."""
        calls = dict.fromkeys(range(len(self.shards)), call)
        answers = self._shards.ask(calls, patient=patient)
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
        held = self._held_in(len(self.shards), wanted)
        calls = {position: (name, wanted[at].tolist()) for position, at, _ in held}
        answers = self._shards.ask(calls)
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
