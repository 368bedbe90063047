"""One commit of an index: its arrays, and what a transaction says of its images."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.files import compared
from hashlens.index.layout import ArrayFile, read_checksums
from hashlens.index.protocol import Hits
from hashlens.index.ranking import ArraySearcher
from hashlens.index.rows import check_width, list_ids, load_text, to_record
from hashlens.index.store import Transaction
from hashlens.index.where import compile_where
from hashlens.types import (
    Codes,
    Features,
    Hit,
    Ids,
    Latent,
    Mode,
    Record,
    SearchOptions,
    SearchResult,
    SearchTrace,
)

_MASKS_KEPT = 16


class Snapshot:
    """Arrays of one commit. Never changes, so many threads may search it.

    Searching numbers the images by *slot*. Where ids ascend with positions, slots are positions
    and dead ones are masked; after an image was encoded again they are not, and slots are the
    living images in the order of their ids. Either way ties come out by id.
    """

    def __init__(self, transaction: Transaction) -> None:
        connection, meta, folder, self.identity = transaction
        self.meta = meta
        self.files: dict[str, ArrayFile] = meta.arrays(folder)
        arrays = {  # of a pool's features, rows here and there are read
            name: file.map(meta.count, scattered=name == "features")
            for name, file in self.files.items()
        }
        self.codes: NDArray[np.uint8] = arrays["codes"]
        self.features: NDArray[Any] = arrays["features"]
        self.files["ids"].require_intact(arrays["ids"], read_checksums(connection, "ids"))
        self.ids: Ids = np.array(arrays["ids"][:, 0], np.int64)
        self.alive: NDArray[np.bool_] | None = None
        dead = [position for (position,) in connection.execute("SELECT position FROM dead")]
        if dead:
            self.alive = np.ones(meta.count, np.bool_)
            self.alive[dead] = False
        self._dead = len(dead)
        self._order: Ids | None = None
        if meta.count > 1 and not bool((self.ids[1:] > self.ids[:-1]).all()):
            positions = np.arange(meta.count) if self.alive is None else np.flatnonzero(self.alive)
            self._order = positions[np.argsort(self.ids[positions], kind="stable")]
        self._searcher: ArraySearcher | None = None
        self._masks: dict[tuple[Any, ...], NDArray[np.bool_]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of living images."""
        return self.meta.count - self._dead

    def is_of(self, transaction: Transaction) -> bool:
        """Whether these are the arrays of the commit that a transaction sees."""
        same: bool = self.meta.commit == transaction.meta.commit
        return same and self.identity == transaction.identity

    def searcher(self, connection: sqlite3.Connection) -> ArraySearcher:
        """The search over this commit, made when first asked for; codes are verified then."""
        with self._lock:
            if self._searcher is None:
                checksums = read_checksums(connection, "codes")
                self.files["codes"].require_intact(self.codes, checksums)
                order = self._order
                self._searcher = ArraySearcher(
                    self.codes if order is None else self.codes[order],
                    self.features if self.meta.feature_dim else None,
                    ids=self.ids if order is None else self.ids[order],
                    rows=order,
                )
            return self._searcher

    def matching(
        self, connection: sqlite3.Connection, where: Mapping[str, Any] | None
    ) -> NDArray[np.bool_] | None:
        """Which slots may be results: the living ones that meet the conditions; None: all."""
        sql, parameters = compile_where(where)
        if not sql:
            return self.alive if self._order is None else None
        key = (sql, *parameters)
        with self._lock:
            if key in self._masks:
                return self._masks[key]
        rows = connection.execute(f"SELECT position FROM images WHERE alive AND {sql}", parameters)
        mask = np.zeros(self.meta.count, np.bool_)
        mask[np.fromiter((position for (position,) in rows), np.int64)] = True
        if self._order is not None:
            mask = mask[self._order]
        with self._lock:
            if len(self._masks) >= _MASKS_KEPT:
                del self._masks[next(iter(self._masks))]
            self._masks[key] = mask
        return mask

    def living(self) -> Ids:
        """Positions of the living images, in the order of their ids."""
        if self._order is not None:
            return self._order
        count = self.meta.count
        return np.arange(count) if self.alive is None else np.flatnonzero(self.alive)


_COLUMNS = "id, uri, label, metadata"


class View(NamedTuple):
    """A transaction, and the arrays of the commit that it sees."""

    connection: sqlite3.Connection
    snapshot: Snapshot

    def search(
        self,
        codes: Any,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> SearchResult:
        """The nearest images of encoded queries."""
        codes = check_width(codes, self.snapshot.meta.bits)
        allowed = self.snapshot.matching(self.connection, options.where)
        searcher = self.snapshot.searcher(self.connection)
        return searcher.search_encoded(
            codes, features, options, latent, allowed=allowed, trace=trace
        )

    def hits(self, queries: Codes, result: SearchResult, mode: Mode) -> list[Hits]:
        """Results with their records and codes."""
        sql = f"SELECT {_COLUMNS}, position FROM images WHERE id = ? AND alive"
        hits: list[Hits] = []
        for query, ids, distances in zip(queries, result.ids, result.distances, strict=True):
            found = ids >= 0
            rows = [self._one(sql, image_id) for image_id in ids[found].tolist()]
            codes = self.snapshot.codes[np.array([row[-1] for row in rows], np.int64)]
            bits = np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.int64).tolist()
            none = [None] * len(rows)
            apart = distances[found].tolist()
            euclidean = apart if mode in ("hds", "es") else none
            asymmetric = apart if mode == "acs" else none
            records = [to_record(row[:-1]) for row in rows]
            hits.append(
                Hits(
                    [
                        Hit(*record, hamming, euclid, code.tobytes(), latent)
                        for record, hamming, euclid, code, latent in zip(
                            records, bits, euclidean, codes, asymmetric, strict=True
                        )
                    ]
                )
            )
        return hits

    def records(self, ids: Iterable[int] | None) -> list[Record]:
        """Records of images in this order; of all living ones, by id, without ``ids``."""
        if ids is None:
            sql = f"SELECT {_COLUMNS} FROM images WHERE alive ORDER BY id"
            return [to_record(row) for row in self.connection.execute(sql)]
        sql = f"SELECT {_COLUMNS} FROM images WHERE id = ? AND alive"
        return [to_record(self._one(sql, image_id)) for image_id in list_ids(ids)]

    def positions(self, ids: Iterable[int] | None) -> Ids:
        """Positions of living images; of all, by id, without ``ids``."""
        if ids is None:
            return self.snapshot.living()
        sql = "SELECT position FROM images WHERE id = ? AND alive"
        return np.array([self._one(sql, image_id)[0] for image_id in list_ids(ids)], np.int64)

    def file_digest(self, image_id: int) -> bytes | None:
        """Digest of a living image's file when it was encoded; None where it is not known."""
        sql = "SELECT digest FROM images WHERE id = ? AND alive"
        digest: bytes | None = self._one(sql, *list_ids(image_id))[0]
        return digest

    def label_counts(self) -> dict[str | None, int]:
        """Living images with each label."""
        sql = "SELECT label, COUNT(*) FROM images WHERE alive GROUP BY label ORDER BY label"
        counts: dict[str | None, int] = {}
        for stored, count in self.connection.execute(sql):
            label = None if stored is None else compared(load_text(stored) or "")
            counts[label] = counts.get(label, 0) + count
        return counts

    def uris(self) -> dict[str, list[int]]:
        """Ids of living images with each URI."""
        found: dict[str, list[int]] = {}
        sql = "SELECT id, uri FROM images WHERE alive ORDER BY id"
        for image_id, uri in self.connection.execute(sql):
            found.setdefault(load_text(uri) or "", []).append(image_id)
        return found

    def _one(self, sql: str, image_id: int) -> tuple[Any, ...]:
        inside = -(2**63) <= image_id < 2**63
        row = self.connection.execute(sql, (image_id,)).fetchone() if inside else None
        if row is None:
            raise InvalidInputError(f"id {image_id}: no such image in the index")
        found: tuple[Any, ...] = row
        return found
