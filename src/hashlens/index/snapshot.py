"""One commit of an index, held open for searching."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.index.array_file import ArrayFile
from hashlens.index.arrays import ArraySearcher
from hashlens.index.filters import compile_where
from hashlens.index.schema import read_checksums
from hashlens.index.store import Store, Transaction
from hashlens.protocols import Ids

_MASKS_KEPT = 16


class Snapshot:
    """Arrays of one commit. Never changes, so many threads may search it.

    Searching numbers the images by *slot*. Where ids ascend with positions, slots are positions
    and dead ones are masked; after an image was encoded anew they are not, and slots are the
    living images in the order of their ids. Either way ties come out by id.

    Parameters
    ----------
    store : Store
        The folder.
    transaction : Transaction
        Sees that commit.
    """

    def __init__(self, store: Store, transaction: Transaction) -> None:
        connection, meta = transaction
        self.meta = meta
        self.files: dict[str, ArrayFile] = meta.arrays(store.path)
        arrays = {  # of a pool's features, rows that lie anywhere are read
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
