"""One commit of an index: its arrays, and what a transaction says of its images."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.database import Allowed, CodeDatabase, with_room
from hashlens.errors import InvalidInputError
from hashlens.index.features import RowNorms
from hashlens.index.layout import DATABASE, ArrayFile, identity, read_checksums
from hashlens.index.protocol import Hits
from hashlens.index.ranking import ArraySearcher
from hashlens.index.rows import ROW, check_width, record_columns
from hashlens.index.store import HEAD, Transaction, head_bytes
from hashlens.index.where import compile_where
from hashlens.types import (
    Codes,
    Features,
    Hit,
    Ids,
    Latent,
    Mode,
    SearchOptions,
    SearchResult,
    SearchTrace,
)

_MASKS_KEPT = 16
_NEW_HIT = partial(tuple.__new__, Hit)
_ROWS_AT_A_TIME = 1000  # in one statement


class Generation:
    """The array files of one generation, held open, and what was read of them.

    Rows are only ever added to them, and a commit sees the first ones. So commits share the codes
    and ids in memory, and a new one reads what it added. The files stay readable when they are
    deleted.
    """

    def __init__(self, transaction: Transaction) -> None:
        meta = transaction.meta
        self.database = os.fspath(transaction.folder.path / DATABASE)
        self.files: dict[str, ArrayFile] = meta.arrays(transaction.folder)
        with ExitStack() as opened:
            self._open = {
                name: opened.enter_context(file.open(meta.count))
                for name, file in self.files.items()
            }
            self.head = -1  # descriptor of the file of that name
            if hasattr(os, "pread"):
                with suppress(OSError):
                    self.head = transaction.folder.open(HEAD, os.O_RDONLY)
                    opened.callback(os.close, self.head)
            # Not with the index: searches in other threads may still read an older generation.
            weakref.finalize(self, opened.pop_all().close)
        self.norms = RowNorms()
        self._lock = threading.Lock()
        self._ids: Ids = np.zeros(0, np.int64)
        self._count = self._next_id = 0  # of the last commit whose ids were read
        self._descent = -1  # the first place whose id is not above the one before
        self._codes: CodeDatabase | None = None
        self._last: dict[int, int] = {}  # checksum of the last block of codes

    def map(self, name: str, count: int) -> NDArray[Any]:
        """The first rows of an array, memory-mapped."""
        scattered = name == "features"  # of a pool's features, rows here and there are read
        return self.files[name].map_of(self._open[name], count, scattered=scattered)

    def require_sizes(self, count: int) -> None:
        """Raise ``IndexStoreError`` if a mapped file was cut since."""
        for name, file in self._open.items():
            self.files[name].require_size(file, count)

    def ids(self, transaction: Transaction) -> tuple[Ids, bool]:
        """The ids of a commit, by position, and whether they ascend."""
        meta = transaction.meta
        with self._lock:
            first, added = self._count, meta.count - self._count
            if added > 0:
                if first and added == meta.next_id - self._next_id:
                    new = np.arange(self._next_id, meta.next_id)  # each row is a new image
                else:
                    rows = self.map("ids", meta.count)
                    checksums = read_checksums(transaction.connection, "ids")
                    self.files["ids"].require_intact(rows, checksums)
                    new = rows[first:, 0]
                if len(self._ids) < meta.count:
                    longer = np.empty(with_room(meta.count), np.int64)
                    longer[:first] = self._ids[:first]
                    self._ids = longer
                self._ids[first : meta.count] = new
                if self._descent < 0:
                    begin = max(first - 1, 0)
                    falls = np.flatnonzero(np.diff(self._ids[begin : meta.count]) <= 0)
                    self._descent = int(falls[0]) + begin + 1 if len(falls) else -1
                self._count, self._next_id = meta.count, meta.next_id
            return self._ids[: meta.count], not 0 <= self._descent < meta.count

    def codes(self, connection: sqlite3.Connection, count: int) -> CodeDatabase:
        """The codes of a commit, verified, and maybe those of later ones."""
        file, name = self.files["codes"], "codes"
        with self._lock:
            held = 0 if self._codes is None else len(self._codes)
            if self._codes is None:
                rows, checksums = self.map(name, count), read_checksums(connection, name)
                file.require_intact(rows, checksums)
                self._codes = CodeDatabase(rows)
            elif held < count:
                checksums = read_checksums(connection, name, max(self._last, default=0))
                opened = self._open[name]
                self._codes.append(file.read_added(opened, held, count, self._last, checksums))
            if held < count:
                self._last = {block: checksums[block] for block in [max(checksums)]}
            return self._codes


class Snapshot:
    """One commit. Never changes, so many threads may search it.

    Searching numbers the images by *slot*. Where ids ascend with positions, slots are positions
    and dead ones are masked; after an image was encoded again they are not, and slots are the
    living images in the order of their ids. Either way ties come out by id.
    """

    def __init__(self, transaction: Transaction, before: Snapshot | None = None) -> None:
        connection, meta, _, self.identity = transaction
        self.meta, self._last = meta, head_bytes(meta.commit)
        if before is not None and not before._shares_files(transaction):
            before = None
        self.arrays: Generation = Generation(transaction) if before is None else before.arrays
        self.ids: Ids
        self.ids, ascending = self.arrays.ids(transaction)
        self._dead: int
        (self._dead,) = connection.execute("SELECT COUNT(*) FROM dead").fetchone()
        self._alive = self._mask_of_living(connection, before)
        self._order: Ids | None = None
        if not ascending:
            living = np.flatnonzero(self._alive[: meta.count]) if self._dead else None
            positions = np.arange(meta.count) if living is None else living
            self._order = positions[np.argsort(self.ids[positions], kind="stable")]
        slots = meta.count if self._order is None else len(self._order)
        mask = self._alive[: slots if self._dead and self._order is None else 0]
        self._allowed = Allowed(slots, mask, len(self))
        self.ready: ArraySearcher | None = None  # what ``searcher`` made
        self._masks: dict[tuple[Any, ...], Allowed] = {}
        self._lock = threading.Lock()

    def _shares_files(self, transaction: Transaction) -> bool:
        """Whether a transaction sees the array files of this commit."""
        own = (self.meta.generation, self.identity)
        return own == (transaction.meta.generation, transaction.identity)

    def _mask_of_living(
        self, connection: sqlite3.Connection, before: Snapshot | None
    ) -> NDArray[np.bool_]:
        """Which positions live, with room for more; empty where all do.

        In one generation the dead stay dead, so as many as before are the same.
        """
        count = self.meta.count
        if not self._dead:
            return np.zeros(0, np.bool_)
        same = before is not None and before._dead == self._dead
        if before is not None and same and len(before._alive) >= count:
            return before._alive
        alive = np.ones(with_room(count), np.bool_)
        if before is not None and same:
            alive[: len(before._alive)] = before._alive
        else:
            dead = connection.execute("SELECT position FROM dead")
            alive[np.fromiter((position for (position,) in dead), np.int64, self._dead)] = False
        return alive

    @cached_property
    def codes(self) -> NDArray[np.uint8]:
        """Packed codes, by position."""
        return self.arrays.map("codes", self.meta.count)

    @cached_property
    def features(self) -> NDArray[Any]:
        """Features, by position."""
        return self.arrays.map("features", self.meta.count)

    @property
    def in_order(self) -> bool:
        """Whether ids ascend with positions."""
        return self._order is None

    def __len__(self) -> int:
        """Number of living images."""
        return self.meta.count - self._dead

    def is_of(self, transaction: Transaction) -> bool:
        """Whether these are the arrays of the commit that a transaction sees."""
        own = (self.meta.commit, self.identity)
        return own == (transaction.meta.commit, transaction.identity)

    def is_last(self) -> bool:
        """Whether this is the last commit, by the file ``head``; False where that is not sure."""
        try:
            same = identity(self.arrays.database) == self.identity
            return same and os.pread(self.arrays.head, len(self._last), 0) == self._last
        except OSError:
            return False

    def is_later(self, other: Snapshot) -> bool:
        """Whether this is a later commit of the same index."""
        later: bool = self.meta.commit > other.meta.commit
        return later and self.identity == other.identity

    def searcher(self, connection: sqlite3.Connection) -> ArraySearcher:
        """The search over this commit, made when first asked for; codes are verified then."""
        with self._lock:
            if self.ready is None:
                order, codes = self._order, self.arrays.codes(connection, self.meta.count)
                self.ready = ArraySearcher(
                    codes if order is None else codes.packed(order),
                    self.features if self.meta.feature_dim else None,
                    ids=self.ids if order is None else self.ids[order],
                    rows=order,
                    norms=self.arrays.norms,
                    allowed=self._allowed,
                )
            return self.ready

    def matching(self, connection: sqlite3.Connection, where: Mapping[str, Any] | None) -> Allowed:
        """Which slots may be results: the living ones that meet the conditions."""
        sql, parameters = compile_where(where)
        if not sql:
            return self._allowed
        key = (sql, *parameters)
        with self._lock:
            if key in self._masks:
                return self._masks[key]
        rows = connection.execute(f"SELECT position FROM images WHERE alive AND {sql}", parameters)
        mask = np.zeros(self.meta.count, np.bool_)
        mask[np.fromiter((position for (position,) in rows), np.int64)] = True
        if self._order is not None:
            mask = mask[self._order]
        allowed = Allowed(len(mask), mask, int(np.count_nonzero(mask)))
        with self._lock:
            if len(self._masks) >= _MASKS_KEPT:
                del self._masks[next(iter(self._masks))]
            self._masks[key] = allowed
        return allowed

    def living(self) -> Ids:
        """Positions of the living images, in the order of their ids."""
        if self._order is not None:
            return self._order
        count = self.meta.count
        return np.flatnonzero(self._alive[:count]) if self._dead else np.arange(count)


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
        found, rows = result.ids.tolist(), self._rows(result.ids)
        hits: list[Hits] = []
        for query, ids, apart in zip(queries, found, result.distances.tolist(), strict=True):
            own = [rows[image_id] for image_id in ids if image_id >= 0]
            del apart[len(own) :]  # those without an image come last
            codes = self.snapshot.codes[np.array([row[-1] for row in own], np.int64)]
            bits, none = apart, [None] * len(own)
            if mode != "bcs":
                bits = np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.int64).tolist()
            euclidean = apart if mode in ("hds", "es") else none
            asymmetric = apart if mode == "acs" else none
            packed = codes.view(f"V{codes.shape[1]}").ravel().tolist()
            columns = (*record_columns(own), bits, euclidean, packed, asymmetric)
            hits.append(Hits(map(_NEW_HIT, zip(*columns, strict=True))))
        return hits

    def _rows(self, ids: Ids) -> dict[int, tuple[Any, ...]]:
        """Columns and positions of the images with these ids; -1 has none."""
        wanted = [*{*ids.ravel().tolist()} - {-1}]
        rows: dict[int, tuple[Any, ...]] = {}
        for at in range(0, len(wanted), _ROWS_AT_A_TIME):
            some = wanted[at : at + _ROWS_AT_A_TIME]
            marks = ",".join("?" * len(some))
            sql = f"SELECT {ROW}, position FROM images WHERE id IN ({marks}) AND alive"
            rows |= {row[0]: row for row in self.connection.execute(sql, some)}
        if len(rows) < len(wanted):
            missing = min(image_id for image_id in wanted if image_id not in rows)
            raise InvalidInputError(f"id {missing}: no such image in the index")
        return rows

    def one(self, sql: str, image_id: int) -> tuple[Any, ...]:
        """The row of a living image, by a statement that takes its id."""
        inside = -(2**63) <= image_id < 2**63
        row = self.connection.execute(sql, (image_id,)).fetchone() if inside else None
        if row is None:
            raise InvalidInputError(f"id {image_id}: no such image in the index")
        found: tuple[Any, ...] = row
        return found
