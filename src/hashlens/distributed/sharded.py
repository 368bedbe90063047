"""``ShardedIndex``: many indexes, used as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

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
from hashlens.distributed.cluster import connect
from hashlens.distributed.replicas import Answers, Replicas, merge
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.hash_index import AddReport, HashIndex, Hit, IndexInfo, Record
from hashlens.types import (
    Codes,
    EncoderLike,
    Features,
    Ids,
    ImageInput,
    Mode,
    SearchOptions,
    SearchResult,
    SearchTrace,
    Skipped,
)


class ShardedResult(SearchResult):
    """A result that says which shards it lacks.

    Attributes
    ----------
    missing : tuple of str
        Folders of shards that did not answer; empty if the result is whole.
    """

    missing: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether a shard is missing."""
        return bool(self.missing)


class ShardedSearcher:
    """Coarse search in every shard, an exact merge, fine search where the features lie.

    The global pool is found by merging by (distance, id), so only ids and distances travel.
    """

    def __init__(
        self,
        folder: Path,
        replicas: Replicas,
        *,
        require_all: bool = False,
        encoder: EncoderLike | None = None,
    ) -> None:
        self.path = folder
        self.encoder = encoder
        self.require_all = require_all
        self._file = CatalogueFile(folder)
        self._replicas = replicas

    @property
    def _catalogue(self) -> Catalogue:
        return self._file.current()

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, as the catalogue has them."""
        return self._catalogue.shards

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self._catalogue.bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self._catalogue.feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds."""
        return self._catalogue.fingerprint

    @property
    def model(self) -> str | None:
        """Where the encoder's model lies, if known."""
        return self._catalogue.model

    def search_encoded(
        self, codes: Codes, features: Features | None, options: SearchOptions
    ) -> ShardedResult:
        """Search with encoded queries; see :class:`hashlens.types.Searcher`."""
        return self._search(codes, features, options, SearchTrace())

    def _search(
        self, codes: Codes, features: Features | None, options: SearchOptions, trace: SearchTrace
    ) -> ShardedResult:
        codes = check_codes(codes, "query codes")
        if codes.shape[1] != code_bytes(self.bits):
            raise InvalidInputError(
                f"query codes: expected {code_bytes(self.bits)} bytes per code ({self.bits} bits), "
                f"got {codes.shape[1]}"
            )
        if options.mode == "hds" and options.radius is None and features is not None:
            result = self._coarse_to_fine(codes, features, options, trace)
        else:
            started = time.perf_counter()
            call = ("search", codes, features, options)
            found, missing = self._gather(dict.fromkeys(range(len(self.shards)), call))
            trace.coarse += time.perf_counter() - started
            result = self._result(merge(found, options.k), missing)
        trace.missing += result.missing
        return result

    def _coarse_to_fine(
        self, codes: Codes, features: Features, options: SearchOptions, trace: SearchTrace
    ) -> ShardedResult:
        started = time.perf_counter()
        k, exclude = options.k, options.exclude
        # One more than asked for, so that leaving one out leaves enough.
        size = options.pool_size + (exclude is not None)
        coarse = SearchOptions(size, mode="bcs", where=options.where)
        call: tuple[Any, ...] = ("search", codes, None, coarse)
        found, missing = self._gather(dict.fromkeys(range(len(self.shards)), call))
        pools = merge(found, size).ids
        trace.pools += (pools >= 0).sum(axis=1).tolist()
        trace.coarse += time.perf_counter() - started
        started = time.perf_counter()
        if exclude is not None:
            pools = np.where(pools == exclude[:, None], -1, pools)
        holders = self._holders(pools)
        call = ("rank", np.ascontiguousarray(features, np.float32), pools, k)
        ranked, late = self._gather(dict.fromkeys(holders, call))
        trace.fine += time.perf_counter() - started
        if not holders:
            width = min(k, pools.shape[1])
            nothing = np.full((len(codes), width), np.inf, np.float32)
            return self._result(SearchResult(np.full(nothing.shape, -1), nothing), missing)
        return self._result(merge(ranked, k), (*missing, *late))

    def _holders(self, ids: Ids) -> list[int]:
        """Positions of the shards that hold some of the ids."""
        if ids.max(initial=-1) >= self._catalogue.next_id:  # a shard knows more than we do
            self._file.current(anew=True)
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
        answers = self._replicas.ask(calls, deadline=deadline)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values

    def _ask_some(self, *call: Any) -> dict[int, Any]:
        """The answers of the shards that answer; raises if all must, or none does."""
        answers = self._replicas.ask(dict.fromkeys(range(len(self.shards)), call))
        self._check_missing(answers)
        return answers.values


class ShardedReader(ShardedSearcher):
    """What does not change a sharded index; ``ShardedIndex`` adds what does.

    Counts are those of the shards that answer.
    """

    def __len__(self) -> int:
        return sum(living for living, _ in self._ask_some("held").values())

    def ids(self) -> Ids:
        """Ids of all images, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *self._ask_some("ids").values()]))

    def get(self, image_id: int) -> Record:
        """What is known of an image."""
        return self.records([image_id])[0]

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        """What is known of images, in the order asked for; of all, by id, without ``ids``."""
        if ids is None:
            found = self._ask_all("records", None).values()
            return sorted((record for part in found for record in part), key=lambda r: r.id)
        wanted = list(ids)
        by_id = {r.id: r for part in self._ask_holders("records", wanted).values() for r in part}
        return [by_id[i] for i in wanted]

    def file_digest(self, image_id: int) -> bytes | None:
        """As ``HashIndex.file_digest``; encoding on a cluster keeps no digests."""
        digest: bytes | None
        (digest,) = self._ask_holders("file_digest", [image_id]).values()
        return digest

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        total: dict[str, list[int]] = {}
        for part in self._ask_all("uris").values():
            for uri, ids in part.items():
                total[uri] = sorted([*total.get(uri, []), *ids])
        return total

    def encoded(self, ids: Iterable[int]) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features (as stored) of images, in the order asked for."""
        wanted = np.array(list(ids), np.int64)
        parts = self._ask_holders("encoded", wanted.tolist())
        order = np.concatenate(
            [np.flatnonzero(self.shards[i].to_local(wanted) >= 0) for i in sorted(parts)]
        )
        back = np.argsort(order)
        codes = np.concatenate([parts[i][0] for i in sorted(parts)])[back]
        return wanted, codes, np.concatenate([parts[i][1] for i in sorted(parts)])[back]

    def histogram(
        self,
        code: Codes,
        where: Mapping[str, Any] | None = None,
        exclude: int | None = None,
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code, shape (bits + 1,)."""
        counts: NDArray[np.int64] = sum(self._ask_some("histogram", code, where, exclude).values())
        return counts

    def label_counts(self) -> dict[str | None, int]:
        """Living images with each label."""
        total: dict[str | None, int] = {}
        for counts in self._ask_some("label_counts").values():
            for label, count in counts.items():
                total[label] = total.get(label, 0) + count
        return total

    def actors(self) -> list[list[Any]]:
        """Ray's actors of each shard, all of which have answered."""
        self._ask_all("held")
        return self._replicas.actors

    def own_memory(self) -> list[int]:
        """Bytes of memory of each answering shard's process, without files that are mapped."""
        return list(self._ask_some("own_memory").values())

    def info(self) -> IndexInfo:
        """Size, kind and origin: as of one index, sizes added up over shards."""
        parts = [IndexInfo(**part) for part in self._ask_some("info").values()]
        sums = ("images", "removed", "commit", "bytes_on_disk")
        totals = {name: sum(getattr(part, name) for part in parts) for name in sums}
        return replace(parts[0], path=str(self.path), model=self.model or "", **totals)

    # Searching by image

    def search(
        self,
        query: Any,
        k: int = 10,
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        pool: int | None = None,
        trace: SearchTrace | None = None,
    ) -> Any:
        """Find the images most like a query: as ``HashIndex.search``."""
        queries = query if isinstance(query, list) else [query]
        by_id = [isinstance(q, int | np.integer) for q in queries]
        codes, features = [], []
        for one, is_id in zip(queries, by_id, strict=True):
            if is_id:
                _, code, feature = self.encoded([int(one)])
            else:
                code, feature = self._require_encoder().encode([one])
            codes.append(code)
            features.append(feature.astype(np.float32))
        options = SearchOptions(k, mode=mode, radius=radius, where=where, pool=pool)
        hits = self.search_hits(np.concatenate(codes), np.concatenate(features), options, trace)
        return hits if isinstance(query, list) else hits[0]

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        trace: SearchTrace | None = None,
    ) -> list[list[Hit]]:
        """As ``search_encoded``, with records: a list of hits for each query."""
        trace = trace or SearchTrace()
        found = self._search(codes, features, options, trace)
        wanted = np.unique(found.ids[found.ids >= 0])
        if not len(wanted):
            return [[] for _ in codes]
        described = self._describe(wanted.tolist(), trace)
        hits = []
        for code, ids, distances in zip(codes, found.ids, found.distances, strict=True):
            of_query = []
            for i, distance in zip(ids.tolist(), distances, strict=True):
                if i in described:
                    stored, record = described[i]
                    hamming = int(np.bitwise_count(stored ^ code).sum())
                    euclidean = None if options.mode == "bcs" else float(distance)
                    of_query.append(Hit(*record, hamming, euclidean))
            hits.append(of_query)
        return hits

    def _describe(self, ids: Sequence[int], trace: SearchTrace) -> dict[int, tuple[Codes, Record]]:
        """Code and record of each image that is still there and whose shard answers."""
        answers = self._replicas.ask(self._held_by("described", ids))
        self._check_missing(answers)
        trace.missing += [self.shards[i].folder for i in answers.missing]
        return {
            record.id: (code, record)
            for codes, records in answers.values.values()
            for code, record in zip(codes, records, strict=True)
        }

    def _ask_holders(self, name: str, ids: Sequence[int], *, repeat: bool = True) -> dict[int, Any]:
        """Ask each shard for those of the ids that it holds; raises if one does not answer."""
        answers = self._replicas.ask(self._held_by(name, ids), repeat=repeat)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values

    def _held_by(self, name: str, ids: Sequence[int]) -> dict[int, tuple[str, list[int]]]:
        """The call that asks each shard for those of the ids that it holds."""
        wanted = np.array(ids, np.int64)
        calls = {}
        for position, shard in enumerate(self.shards):
            here = wanted[shard.to_local(wanted) >= 0]
            if len(here):
                calls[position] = (name, here.tolist())
        if sum(len(here) for _, here in calls.values()) != len(wanted):
            unknown = next(i for i in ids if self._catalogue.shard_of(i) is None)
            raise InvalidInputError(f"id {unknown}: no such image in the index")
        return calls

    def _require_encoder(self) -> EncoderLike:
        if self.encoder is None:
            raise IndexStoreError(
                f"{self.path}: opened without an encoder; give one to ShardedIndex.open"
            )
        return self.encoder


DEADLINE_SECONDS = 10.0
_ADD_ROWS = 256


class ShardedIndex(ShardedReader):
    """Shards on a Ray cluster, which answer as one index of the same images would.

    An instance may be used from many threads for searching; one process may change it at a time.
    """

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
        """Open a sharded index: an actor a shard and replica is started."""
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
        index._adopt()
        return index

    def _adopt(self) -> None:
        """Give ids to images that were committed to a shard just before a crash."""
        held = self._ask_all("held")
        self._publish({position: end for position, (_, end) in held.items()})

    def _publish(self, ends: Mapping[int, int]) -> None:
        """Give ids of the whole to the shards' own ids below each end."""

        def change(catalogue: Catalogue) -> Catalogue:
            for position, end in sorted(ends.items()):
                catalogue = catalogue.with_added(position, end)
            return catalogue

        before = self._catalogue
        change_catalogue(self.path, change)
        self._file.current(anew=True)
        if self._catalogue != before:
            self._replicas.ask({position: ("refresh",) for position in ends}, everyone=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors."""
        self._replicas.stop()

    # Growing and shrinking

    def add(
        self,
        images: Iterable[ImageInput],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        strict: bool = False,
    ) -> AddReport:
        """Encode images here and add them to the smallest shard, committing as it goes."""
        listed = list(images)
        ids: list[Ids] = [np.zeros(0, np.int64)]
        skipped: list[Skipped] = []
        encoder = self._require_encoder()
        for batch in encoder.encode_batches(listed, batch_size=_ADD_ROWS, strict=strict):
            at = batch.positions.tolist()
            skipped += batch.skipped
            uris = [str(listed[i]) if isinstance(listed[i], str | Path) else "" for i in at]
            ids.append(
                self.add_encoded(
                    batch.codes,
                    batch.features,
                    uris,
                    None if labels is None else [labels[i] for i in at],
                    None if metadata is None else [metadata[i] for i in at],
                )
            )
            if progress is not None:
                progress(len(at) + len(batch.skipped))
        return AddReport(np.concatenate(ids), tuple(skipped))

    def add_encoded(
        self,
        codes: Codes,
        features: Features,
        uris: Sequence[str],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
    ) -> Ids:
        """Add encoded images to the shard with the fewest ids, in one commit of that shard."""
        position = min(range(len(self.shards)), key=lambda i: (self.shards[i].count, i))
        call = ("add_encoded", codes, features, list(uris), labels, metadata)
        local = self._ask_one(position, call)
        if not len(local):
            return np.zeros(0, np.int64)
        self._publish({position: int(local[-1]) + 1})
        return self.shards[position].to_global(local)

    def remove(self, ids: Any) -> None:
        """Remove images, in one commit a shard."""
        wanted = np.unique(np.atleast_1d(np.asarray(ids, np.int64))).tolist()
        self.records(wanted)
        self._ask_holders("remove", wanted, repeat=False)

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
        self._file.current(anew=True)
        self._ask_one(len(self.shards) - 1, ("refresh",))
        return shard

    def _ask_one(self, position: int, call: tuple[Any, ...]) -> Any:
        answers = self._replicas.ask({position: call}, repeat=False)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values[position]
