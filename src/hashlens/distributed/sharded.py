"""``ShardedIndex``: many indexes on a cluster, used as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_bytes
from hashlens.distributed.catalogue import (
    Catalogue,
    CatalogueFile,
    Shard,
    change_catalogue,
    read_catalogue,
)
from hashlens.distributed.cluster import Answers, Replicas, connect, merge
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.hash_index import HashIndex
from hashlens.index.protocol import Hits, Index
from hashlens.index.ranking import ArraySearcher, check_latent
from hashlens.index.rows import check_ids, check_width, list_ids
from hashlens.index.writing import EncodedImage, GivenRows
from hashlens.types import (
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

DEADLINE_SECONDS = 10.0
_HOUR = 3600.0  # for what reads or writes a whole shard


class ShardedResult(SearchResult):
    """A result that says which shards it lacks."""

    missing: tuple[str, ...] = ()  # folders of those that did not answer

    @property
    def partial(self) -> bool:
        """Whether a shard is missing."""
        return bool(self.missing)


class ShardedIndex(Index):
    """Shards on a Ray cluster, which answer as one index of the same images would.

    Every shard is searched coarsely, the results are merged exactly by (distance, id), and fine
    search runs in the shards that hold the features, so only ids and distances travel. Counts are
    those of the shards that answer. An instance may be used from many threads for searching; one
    process may change it at a time.
    """

    def __init__(
        self,
        folder: Path,
        replicas: Replicas,
        *,
        require_all: bool = False,
        encoder: EncoderLike | None = None,
    ) -> None:
        self.require_all = require_all
        self.path, self.encoder = folder, encoder
        self._file = CatalogueFile(folder)
        self._replicas = replicas

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: EncoderLike | None = None,
        *,
        address: str | None = None,
        replicas: int = 1,
        deadline: float = DEADLINE_SECONDS,
        require_all: bool = False,
    ) -> ShardedIndex:
        """Open a sharded index: starts an actor for each shard and replica.

        Parameters
        ----------
        path : str or Path
            The folder; the actors must reach it too.
        encoder : EncoderLike, optional
            Needed to add or search images rather than codes.
        address : str, optional
            Ray's address; see :func:`hashlens.distributed.cluster.connect`.
        replicas : int
            Actors per shard.
        deadline : float
            Seconds that a replica has for an answer.
        require_all : bool
            Raise when a shard does not answer, rather than answer without it.

        Returns
        -------
        ShardedIndex

        Raises
        ------
        IndexStoreError
            If there is no sharded index, or the encoder is not the one whose codes it holds.
        """
        if replicas < 1 or deadline <= 0:
            raise InvalidInputError(
                f"expected replicas of 1 or more and a deadline above 0, got {replicas}, {deadline}"
            )
        folder = Path(path).absolute()
        catalogue = read_catalogue(folder)
        if encoder is not None and encoder.fingerprint != catalogue.fingerprint:
            raise IndexStoreError(
                f"{folder}: made by model {catalogue.fingerprint[:12]}, got model "
                f"{encoder.fingerprint[:12]}; use the index's own model, or index again"
            )
        actors = Replicas(connect(address), str(folder), replicas, deadline)
        index = cls(folder, actors, require_all=require_all, encoder=encoder)
        # Images that were committed to a shard just before a crash have no ids yet.
        held = index._ask_all("held")
        index._publish({position: end for position, (_, end) in held.items()})
        return index

    def close(self) -> None:
        """End the actors."""
        self._replicas.stop()

    def __len__(self) -> int:
        return sum(living for living, _ in self._ask_some("held").values())

    @property
    def model(self) -> str | None:
        return self._catalogue.model

    @property
    def bits(self) -> int:
        return self._catalogue.bits

    @property
    def feature_dim(self) -> int:
        return self._catalogue.feature_dim

    @property
    def fingerprint(self) -> str:
        return self._catalogue.fingerprint

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, as the catalogue has them."""
        return self._catalogue.shards

    @property
    def _catalogue(self) -> Catalogue:
        return self._file.current()

    def info(self) -> IndexInfo:
        parts = [IndexInfo(**part) for part in self._ask_some("info").values()]
        sums = ("images", "removed", "commit", "bytes_on_disk")
        totals = {name: sum(getattr(part, name) for part in parts) for name in sums}
        return replace(parts[0], path=str(self.path), model=self.model or "", **totals)

    def actors(self) -> list[list[Any]]:
        """Ray's actors of each shard, all of which have answered."""
        self._ask_all("held")
        return self._replicas.actors

    def own_memory(self) -> list[int]:
        """Bytes of memory of each answering shard's process, without files that are mapped."""
        return list(self._ask_some("own_memory").values())

    # Searching; `search` itself is in `Index`

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
    ) -> ShardedResult:
        """Search with encoded queries; see :class:`hashlens.types.Searcher`."""
        return self._search(codes, features, options, latent, SearchTrace())

    def _search(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None,
        trace: SearchTrace,
    ) -> ShardedResult:
        codes = check_width(codes, self.bits)
        if options.mode == "acs":
            latent = check_latent(latent, codes)
        asked = {"hds": features, "acs": latent}.get(options.mode)
        if asked is not None and options.radius is None:
            result = self._coarse_to_fine(codes, asked, options, trace)
        else:
            started = time.perf_counter()
            call = ("search", codes, features, options, latent)
            found, missing = self._gather(dict.fromkeys(range(len(self.shards)), call))
            trace.coarse += time.perf_counter() - started
            result = self._result(merge(found, options.k), missing)
        trace.missing += result.missing
        return result

    def _coarse_to_fine(
        self, codes: Codes, asked: Features, options: SearchOptions, trace: SearchTrace
    ) -> ShardedResult:
        """Pools of all shards by codes, ordered by ``asked``: features, or latent values."""
        started = time.perf_counter()
        k, exclude = options.k, options.exclude
        # One more than asked for, so that leaving one out leaves enough.
        size = options.pool_size + (exclude is not None)
        coarse = SearchOptions(size, mode="bcs", where=options.where)
        call: tuple[Any, ...] = ("search", codes, None, coarse, None)
        found, missing = self._gather(dict.fromkeys(range(len(self.shards)), call))
        pools = merge(found, size).ids
        trace.pools += (pools >= 0).sum(axis=1).tolist()
        trace.coarse += time.perf_counter() - started
        started = time.perf_counter()
        if exclude is not None:
            pools = np.where(pools == exclude[:, None], -1, pools)
        holders = self._holders(pools)
        call = ("rank", options.mode, np.ascontiguousarray(asked, np.float32), pools, k)
        ranked, late = self._gather(dict.fromkeys(holders, call))
        trace.fine += time.perf_counter() - started
        if not holders:
            width = min(k, pools.shape[1])
            nothing = np.full((len(codes), width), np.inf, np.float32)
            return self._result(SearchResult(np.full(nothing.shape, -1), nothing), missing)
        return self._result(merge(ranked, k), (*missing, *late))

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hits]:
        trace = trace or SearchTrace()
        found = self._search(codes, features, options, latent, trace)
        wanted = np.unique(found.ids[found.ids >= 0])
        described = self._describe(wanted, trace) if len(wanted) else {}
        hits = []
        for query, ids, distances in zip(codes, found.ids, found.distances, strict=True):
            of_query = Hits()
            for image_id, distance in zip(ids.tolist(), distances.tolist(), strict=True):
                if image_id in described:
                    code, record = described[image_id]
                    hamming = int(np.bitwise_count(code ^ query).sum())
                    euclidean = distance if options.mode in ("hds", "es") else None
                    asymmetric = distance if options.mode == "acs" else None
                    hit = Hit(*record, hamming, euclidean, code.tobytes(), asymmetric)
                    of_query.append(hit)
            hits.append(of_query)
        return hits

    def _describe(self, ids: Ids, trace: SearchTrace) -> dict[int, tuple[Codes, Record]]:
        """Code and record of each image that is still there and whose shard answers."""
        answers = self._replicas.ask(self._held_by("described", ids.tolist()))
        self._check_missing(answers)
        trace.missing += [self.shards[i].folder for i in answers.missing]
        return {
            record.id: (code, record)
            for codes, records in answers.values.values()
            for code, record in zip(codes, records, strict=True)
        }

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
        return np.sort(np.concatenate([np.zeros(0, np.int64), *self._ask_some("ids").values()]))

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        if ids is None:
            found = self._ask_all("records", None, deadline=_HOUR).values()
            return sorted((record for part in found for record in part), key=lambda r: r.id)
        wanted = list_ids(ids)
        by_id = {r.id: r for part in self._ask_holders("records", wanted).values() for r in part}
        return [by_id[i] for i in wanted]

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        if ids is None:
            parts = list(self._ask_all("encoded", None, deadline=_HOUR).values())
            wanted = None
        else:
            wanted = list_ids(ids)
            parts = list(self._ask_holders("encoded", wanted).values())
        empty = np.zeros(0, np.int64), np.zeros((0, code_bytes(self.bits)), np.uint8)
        if not parts:
            return *empty, np.zeros((0, self.feature_dim), np.float32)
        held, codes, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(held)
        if wanted is not None:
            order = order[np.searchsorted(held[order], wanted)]
        return held[order], codes[order], features[order]

    def uris(self) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for part in self._ask_all("uris", deadline=_HOUR).values():
            for uri, ids in part.items():
                total[uri] = sorted([*total.get(uri, []), *ids])
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
        (digest,) = self._ask_holders("file_digest", list_ids(image_id)).values()
        return digest

    def to_arrow(self) -> Any:
        """All images as a table, as ``HashIndex.to_arrow`` gives it."""
        tables = list(self._ask_all("to_arrow", deadline=_HOUR).values())
        import pyarrow as pa

        return pa.concat_tables(tables).sort_by("id")

    def export(self, path: str | Path, format: str) -> None:
        """Refused: a sharded index is exported shard by shard, or through ``to_arrow``."""
        raise IndexStoreError(
            f"{self.path}: an index in shards is exported shard by shard: "
            f"`hashlens index export {self.path / self.shards[0].folder} ...`, and so on; in "
            "Python, `to_arrow` gives one table of all"
        )

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte of every shard against its checksum; a line for each damage."""
        found = self._ask_all("verify", deadline=_HOUR)
        if progress is not None:
            progress(sum(rows for _, rows in found.values()))
        return [line for position in sorted(found) for line in found[position][0]]

    # Filling and changing

    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        """Add encoded images to the shard with the fewest ids, in one commit of that shard."""
        position = min(range(len(self.shards)), key=lambda i: (self.shards[i].count, i))
        local = self._change({position: ("add", codes, features, rows)})[position]
        if not len(local):
            return np.zeros(0, np.int64)
        self._publish({position: int(local[-1]) + 1})
        return self.shards[position].to_global(local)

    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features, in one commit per shard; ids and records stay."""
        wanted = check_ids(ids)
        self.records(wanted)
        codes = check_codes(codes)
        if len(codes) != len(wanted):
            raise InvalidInputError(f"codes: expected {len(wanted)}, one per id, got {len(codes)}")
        calls: dict[int, tuple[Any, ...]] = {}
        for position, (_, here) in self._held_by("", wanted.tolist()).items():
            at = np.flatnonzero(np.isin(wanted, here))
            values = None if features is None else np.asarray(features)[at]
            calls[position] = ("replace_encoded", here, codes[at], values)
        self._change(calls)

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
            "`hashlens index add` and `hashlens index remove`, or an index without shards"
        )

    def _update(self, image_id: int, changes: dict[str, Any], encoded: EncodedImage | None) -> None:
        (position,) = self._held_by("", [image_id])
        self._change({position: ("update", image_id, changes, encoded)})

    def remove(self, ids: Any) -> None:
        """Remove images, in one commit per shard; their space is freed by ``compact``."""
        wanted = check_ids(ids).tolist()
        self.records(wanted)
        self._change(self._held_by("remove", wanted))

    def compact(self) -> int:
        """Free the space of removed images in every shard; the number of rows dropped."""
        calls: dict[int, tuple[Any, ...]] = dict.fromkeys(range(len(self.shards)), ("compact",))
        return sum(self._change(calls, deadline=_HOUR).values())

    def add_shard(self) -> Shard:
        """Add an empty shard; what is added later goes there until it is as full as the others."""
        shard = Shard(f"shard-{len(self.shards):04d}")
        HashIndex.create(
            self.path / shard.folder,
            bits=self.bits,
            feature_dim=self.feature_dim,
            fingerprint=self.fingerprint,
            model=self.model,
        ).close()
        change_catalogue(self.path, lambda c: replace(c, shards=(*c.shards, shard)))
        self._file.current(again=True)
        self._change({len(self.shards) - 1: ("refresh",)})
        return shard

    def _publish(self, ends: Mapping[int, int]) -> None:
        """Give ids to the images whose ids in their shards are below each end."""

        def change(catalogue: Catalogue) -> Catalogue:
            for position, end in sorted(ends.items()):
                catalogue = catalogue.with_added(position, end)
            return catalogue

        before = self._catalogue
        change_catalogue(self.path, change)
        self._file.current(again=True)
        if self._catalogue != before:
            self._replicas.ask({position: ("refresh",) for position in ends}, everyone=True)

    # Asking the shards

    def _holders(self, ids: Ids) -> list[int]:
        """Positions of the shards that hold some of the ids."""
        if ids.max(initial=-1) >= self._catalogue.next_id:  # a shard knows more than we do
            self._file.current(again=True)
        return [i for i, s in enumerate(self.shards) if (s.to_local(ids) >= 0).any()]

    def _gather(
        self, calls: Mapping[int, tuple[Any, ...]]
    ) -> tuple[list[SearchResult], tuple[int, ...]]:
        answers = self._replicas.ask(calls)
        self._check_missing(answers)
        return [answers.values[i] for i in sorted(answers.values)], answers.missing

    def _check_missing(self, answers: Answers) -> None:
        if answers.missing and (self.require_all or not answers.values):
            raise self._unanswered(answers.missing)

    def _result(self, result: SearchResult, missing: Sequence[int]) -> ShardedResult:
        whole = ShardedResult(*result)
        whole.missing = tuple(self.shards[i].folder for i in sorted(set(missing)))
        return whole

    def _unanswered(self, missing: Sequence[int]) -> IndexStoreError:
        names = ", ".join(self.shards[i].folder for i in missing)
        return IndexStoreError(
            f"{self.path}: no replica of {names} answered in time; look at the cluster with "
            "`ray status`, or give more replicas"
        )

    def _ask_all(self, *call: Any, deadline: float | None = None) -> dict[int, Any]:
        """The answers of all shards; raises if one does not answer."""
        calls = dict.fromkeys(range(len(self.shards)), call)
        return self._all_of(self._replicas.ask(calls, deadline=deadline))

    def _ask_some(self, *call: Any) -> dict[int, Any]:
        """The answers of the shards that answer; raises if all must, or none does."""
        answers = self._replicas.ask(dict.fromkeys(range(len(self.shards)), call))
        self._check_missing(answers)
        return answers.values

    def _ask_holders(self, name: str, ids: Sequence[int]) -> dict[int, Any]:
        """Ask each shard for those of the ids that it holds; raises if one does not answer."""
        return self._all_of(self._replicas.ask(self._held_by(name, ids)))

    def _change(
        self, calls: Mapping[int, tuple[Any, ...]], *, deadline: float | None = None
    ) -> dict[int, Any]:
        """Have shards change something, each once; raises if one does not answer."""
        return self._all_of(self._replicas.ask(calls, repeat=False, deadline=deadline))

    def _all_of(self, answers: Answers) -> dict[int, Any]:
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values

    def _held_by(self, name: str, ids: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """The call that asks each shard for those of the ids that it holds."""
        catalogue = self._catalogue
        for image_id in ids:
            if catalogue.shard_of(image_id) is None:
                raise InvalidInputError(f"id {image_id}: no such image in the index")
        wanted = np.array(ids, np.int64)
        held = {i: wanted[s.to_local(wanted) >= 0].tolist() for i, s in enumerate(self.shards)}
        return {position: (name, here) for position, here in held.items() if here}
