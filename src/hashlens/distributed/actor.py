"""What runs beside a shard: an ordinary index, asked in ids of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes
from hashlens.distributed.catalogue import CatalogueFile, Shard
from hashlens.distributed.memory import own_memory
from hashlens.errors import InvalidInputError
from hashlens.index.euclidean import distances_to_rows
from hashlens.index.index import HashIndex, Record
from hashlens.protocols import Codes, Features, Ids, Mode, SearchResult


class ShardServer:
    """Answers for one shard. A Ray actor; restarted by Ray, it opens its shard again.

    Parameters
    ----------
    folder : str
        Folder of the sharded index.
    position : int
        Place of the shard in the catalogue.
    """

    def __init__(self, folder: str, position: int) -> None:
        self._catalogue = CatalogueFile(Path(folder))
        self._position = position
        self._index = HashIndex.open(Path(folder) / self._shard.folder)
        # maps the arrays and loads the kernels, which is no part of the first query's time
        code = np.zeros((1, code_bytes(self._index.bits)), np.uint8)
        feature = np.zeros((1, self._index.feature_dim), np.float32)
        self._index.search_encoded(code, feature, 1, mode="hds" if feature.size else "bcs")

    @property
    def _shard(self) -> Shard:
        return self._catalogue.current().shards[self._position]

    def refresh(self) -> None:
        """Read the catalogue again, after images were added."""
        self._catalogue.current(anew=True)

    def held(self) -> tuple[int, int]:
        """Living images, and the first of this shard's own ids that no image ever had."""
        ids = self._index.ids()
        known = max((r.local + r.count for r in self._shard.ranges), default=0)
        return len(ids), max(known, int(ids.max(initial=-1)) + 1)

    def search(
        self,
        codes: Codes,
        features: Features | None,
        k: int,
        mode: Mode,
        radius: int | None,
        where: Mapping[str, Any] | None,
        exclude: Ids | None,
        pool: int | None,
    ) -> SearchResult:
        """``search_encoded`` of this shard, in ids of the whole."""
        shard = self._shard
        left_out = None if exclude is None else shard.to_local(exclude)
        more = k
        while True:
            found = self._index.search_encoded(
                codes, features, more, mode=mode, radius=radius, where=where, exclude=left_out,
                pool=pool,
            )  # fmt: skip
            result = SearchResult(shard.to_global(found.ids), found.distances)
            # images committed here that the catalogue does not know yet must not take places
            unknown = int(((found.ids >= 0) & (result.ids < 0)).sum(axis=1).max(initial=0))
            if more >= k + unknown:
                return result
            more = k + unknown

    def rank(self, features: Features, pools: Ids, k: int) -> SearchResult:
        """Euclidean distances of each query to its pool's images in this shard, nearest first.

        Parameters
        ----------
        features : ndarray of shape (q, d), float32
            The queries.
        pools : ndarray of shape (q, m), int64
            Ids of the whole; those of other shards are passed over.
        k : int
            Results a query at most.
        """
        local = self._shard.to_local(pools)
        wanted = np.unique(local[local >= 0])
        ids, _, stored = self._index.encoded(wanted.tolist())
        width = min(k, pools.shape[1])
        result = SearchResult(
            np.full((len(pools), width), -1, np.int64),
            np.full((len(pools), width), np.inf, np.float32),
        )
        for row, pool in enumerate(local):
            at = np.searchsorted(ids, np.sort(pool[pool >= 0]))
            near = distances_to_rows(stored, at, features[row])
            order = np.argsort(near, kind="stable")[:width]
            result.ids[row, : len(order)] = self._shard.to_global(ids[at[order]])
            result.distances[row, : len(order)] = near[order]
        return result

    def ids(self) -> Ids:
        """Ids of all living images, ascending."""
        return np.sort(self._shard.to_global(self._index.ids()))

    def records(self, ids: Sequence[int] | None) -> list[Record]:
        """Records of images that are here; of all without ``ids``."""
        with self._naming(ids):
            found = self._index.records(None if ids is None else self._local(ids))
        numbers = self._shard.to_global(np.array([r.id for r in found], np.int64))
        return [
            record._replace(id=int(number)) for record, number in zip(found, numbers, strict=True)
        ]

    def encoded(self, ids: Sequence[int]) -> tuple[Codes, NDArray[Any]]:
        """Codes and features of images that are here, in the order asked for."""
        with self._naming(ids):
            _, codes, features = self._index.encoded(self._local(ids))
        return codes, features

    def file_digest(self, ids: Sequence[int]) -> bytes | None:
        """Digest of the file of one image that is here."""
        with self._naming(ids):
            return self._index.file_digest(self._local(ids)[0])

    def described(self, ids: Sequence[int]) -> tuple[Codes, list[Record]]:
        """Codes and records of images that are here; one removed meanwhile is passed over."""
        try:
            return self.encoded(ids)[0], self.records(ids)
        except InvalidInputError:
            local = np.array(self._local(ids), np.int64)
            ids = np.asarray(ids)[np.isin(local, self._index.ids())].tolist()
            return self.encoded(ids)[0], self.records(ids)

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        return {
            uri: self._shard.to_global(np.array(ids, np.int64)).tolist()
            for uri, ids in self._index.uris().items()
        }

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None, exclude: int | None
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code."""
        local = None if exclude is None else int(self._shard.to_local(np.array([exclude]))[0])
        return self._index.histogram(code, where, None if local == -1 else local)

    def label_counts(self) -> dict[str | None, int]:
        """Living images with each label."""
        return self._index.label_counts()

    def own_memory(self) -> int:
        """Bytes of memory that this process has to itself, without files that are mapped."""
        return own_memory()

    def info(self) -> dict[str, Any]:
        """``IndexInfo`` as a dictionary."""
        return asdict(self._index.info())

    def add_encoded(
        self,
        codes: Codes,
        features: Features,
        uris: Sequence[str],
        labels: Sequence[Any] | None,
        metadata: Sequence[Any] | None,
    ) -> Ids:
        """Add to this shard, in one commit; returns the shard's own ids."""
        return self._index.add_encoded(codes, features, uris, labels, metadata)

    def remove(self, ids: Sequence[int]) -> None:
        """Remove images that are here, in one commit."""
        with self._naming(ids):
            self._index.remove(self._local(ids))

    def _local(self, ids: Sequence[int]) -> list[int]:
        local: list[int] = self._shard.to_local(np.array(ids, np.int64)).tolist()
        return local

    @contextmanager
    def _naming(self, ids: Sequence[int] | None) -> Iterator[None]:
        """An unknown id is named as the caller knows it."""
        try:
            yield
        except InvalidInputError:
            living = set(self._index.ids().tolist())
            for number, local in zip(ids or (), self._local(ids or ()), strict=True):
                if local not in living:
                    message = f"id {number}: no such image in the index"
                    raise InvalidInputError(message) from None
            raise
