"""Records and hits of a sharded index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.distributed.searcher import ShardedResult, ShardedSearcher
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.arrays import SearchTrace
from hashlens.index.index import Hit, Record
from hashlens.index.info import IndexInfo
from hashlens.protocols import Codes, Encoder, Features, Ids, Mode


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
        """What is known of an image.

        Raises
        ------
        InvalidInputError
            If it is not in the index.
        """
        return self.records([image_id])[0]

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        """What is known of images, in the order asked for; of all, by id, without ``ids``.

        Raises
        ------
        InvalidInputError
            If one is not in the index.
        """
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
        """Number of images at each Hamming distance from a code, shape (bits + 1,).

        Parameters
        ----------
        code, where, exclude
            As in ``HashIndex.histogram``.
        """
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
        """Find the images most like a query: as ``HashIndex.search``.

        Parameters
        ----------
        query, k, mode, radius, where, pool, trace
            As in ``HashIndex.search``; the trace names shards that did not answer.
        """
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
        hits = self.search_hits(
            np.concatenate(codes),
            np.concatenate(features),
            k,
            mode=mode,
            radius=radius,
            where=where,
            pool=pool,
            trace=trace,
        )
        return hits if isinstance(query, list) else hits[0]

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        k: int = 10,
        *,
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        exclude: Ids | None = None,
        pool: int | None = None,
        trace: SearchTrace | None = None,
    ) -> list[list[Hit]]:
        """As ``search_encoded``, with records: a list of hits for each query.

        Parameters
        ----------
        codes, features, k, mode, radius, where, exclude, pool
            As in ``search_encoded``.
        trace : SearchTrace, optional
            Times and pools are added to it.
        """
        trace = trace or SearchTrace()
        found: ShardedResult = self._search(
            codes, features, k, mode, radius, where, exclude, pool, trace
        )
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
                    euclidean = None if mode == "bcs" else float(distance)
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

    def _require_encoder(self) -> Encoder:
        if self.encoder is None:
            raise IndexStoreError(
                f"{self.path}: opened without an encoder; give one to ShardedIndex.open"
            )
        return self.encoder
