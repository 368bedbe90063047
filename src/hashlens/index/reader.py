"""Reading an index: its last commit, and what is known of its images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from hashlens.errors import IndexStoreError
from hashlens.file_uris import uri_path
from hashlens.index import exporting, lookups, verifying
from hashlens.index.checks import check_ids, require_same_model
from hashlens.index.info import IndexInfo, describe
from hashlens.index.records import Record
from hashlens.index.snapshot import Snapshot
from hashlens.index.store import Store, Transaction
from hashlens.protocols import Codes, Encoder, Ids


class IndexReader:
    """An index at its last commit, and what is known of its images.

    Parameters
    ----------
    store : Store
        The folder.
    encoder : Encoder, optional
        Needed to search by image.
    """

    def __init__(self, store: Store, encoder: Encoder | None = None) -> None:
        self.store = store
        self._encoder = encoder
        self._snapshot: Snapshot | None = None
        try:
            with self._at_last_commit() as (_, snapshot):
                if encoder is not None:
                    require_same_model(store.path, snapshot.meta, encoder)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; arrays stay mapped while something uses them."""
        self.store.close()
        self._snapshot = None

    def __len__(self) -> int:
        with self._at_last_commit() as (_, snapshot):
            return len(snapshot)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.store.path

    @property
    def encoder(self) -> Encoder | None:
        """What encodes images, if it was given."""
        return self._encoder

    @property
    def model(self) -> str | None:
        """Where the encoder's model lies, if known."""
        stored = self.store.meta().model
        return os.fspath(uri_path(stored)) if stored else None

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.store.meta().bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self.store.meta().feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds; empty where unknown."""
        return self.store.meta().fingerprint

    def info(self) -> IndexInfo:
        """Size, kind and origin of the index."""
        with self._at_last_commit() as (_, snapshot):
            return describe(self.path, snapshot)

    def label_counts(self) -> dict[str | None, int]:
        """Number of images with each label, by name; None are those without."""
        with self._at_last_commit() as (transaction, _):
            return lookups.label_counts(transaction.connection)

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte against its checksum.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of rows read since the last call; three arrays have each
            ``images + removed`` rows.

        Returns
        -------
        list of str
            A line for each thing that is damaged, with its file; empty if all is well.

        Raises
        ------
        IndexStoreError
            If the database is too damaged to be read at all.
        """
        return verifying.find_damage(self.store, progress)

    def ids(self) -> Ids:
        """Ids of all images, ascending."""
        with self._at_last_commit() as (_, snapshot):
            living: Ids = snapshot.ids[snapshot.living()]
            return living

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
        with self._at_last_commit() as (transaction, _):
            return lookups.records(transaction.connection, ids)

    def file_digest(self, image_id: int) -> bytes | None:
        """Digest of an image's file when it was encoded; None where it came from no file.

        Raises
        ------
        InvalidInputError
            If it is not in the index.
        """
        with self._at_last_commit() as (transaction, _):
            return lookups.file_digest(transaction.connection, image_id)

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        with self._at_last_commit() as (transaction, _):
            return lookups.ids_by_uri(transaction.connection)

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features (as stored) of images; of all, by id, without ``ids``."""
        with self._at_last_commit() as (transaction, snapshot):
            if ids is None:
                at = snapshot.living()
            else:
                at = lookups.positions(transaction.connection, check_ids(ids).tolist())
            return snapshot.ids[at], snapshot.codes[at], snapshot.features[at]

    def export(self, path: str | Path, format: str) -> None:
        """Write the index as a file that other libraries read.

        Parameters
        ----------
        path : str or Path
            Must not exist.
        format : {"faiss", "parquet", "numpy"}
            A FAISS ``IndexBinaryFlat`` (inside an ``IndexBinaryIDMap`` where ids are not 0, 1,
            2, ...); a Parquet table with records, codes and features; a folder of ``.npy`` files.

        Raises
        ------
        MissingExtraError
            If the library that the format needs is not installed.
        IndexStoreError
            If something stands at ``path``, or it cannot be written.
        """
        with self._at_last_commit() as (transaction, snapshot):
            exporting.export(transaction, snapshot, Path(path), format)

    @contextmanager
    def _at_last_commit(self) -> Iterator[tuple[Transaction, Snapshot]]:
        """A transaction, and the arrays of the commit it sees."""
        for last_try in (False, False, True):
            with self.store.reading() as transaction:
                snapshot = self._snapshot
                if snapshot is None or snapshot.meta.commit != transaction.meta.commit:
                    try:
                        snapshot = Snapshot(self.store, transaction)
                    except IndexStoreError:
                        # `compact` may have switched files since the transaction began.
                        if last_try or self.store.meta().generation == transaction.meta.generation:
                            raise
                        continue
                    self._snapshot = snapshot
                yield transaction, snapshot
                return
