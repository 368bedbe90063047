"""Searching an index on disk, and what is known of its images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.search import hamming_radius
from hashlens.errors import IndexStoreError
from hashlens.index import exporting, searching, verifying
from hashlens.index.arrays import SearchTrace
from hashlens.index.checks import check_ids, check_width, require_same_model
from hashlens.index.duplicates import DuplicateGroups, find_duplicates
from hashlens.index.records import Hit, Record
from hashlens.index.schema import FORMAT_VERSION, Meta
from hashlens.index.snapshot import Snapshot
from hashlens.index.store import Store, Transaction
from hashlens.protocols import Codes, Encoder, Features, Ids, ImageInput, Mode, SearchResult

Query: TypeAlias = "ImageInput | int"


@dataclass(frozen=True)
class IndexInfo:
    """What an index is.

    Attributes
    ----------
    path : str
        The folder.
    format_version : int
        Of the folder.
    images, removed : int
        Living images; rows that ``compact`` would drop.
    bits, feature_dim : int
        Length of a code; width of a feature vector (0: codes only).
    features : str
        "float16" or "float32".
    fingerprint, model : str
        Of the encoder, and where its model lies; empty where unknown.
    commit : int
        Number of the last commit.
    bytes_on_disk : int
        Size of all files.
    """

    path: str
    format_version: int
    images: int
    removed: int
    bits: int
    feature_dim: int
    features: str
    fingerprint: str
    model: str
    commit: int
    bytes_on_disk: int


class IndexReader:
    """What does not change an index; ``HashIndex`` adds what does.

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
        return self._meta().model or None

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self._meta().bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self._meta().feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds; empty where unknown."""
        return self._meta().fingerprint

    def info(self) -> IndexInfo:
        """Size, kind and origin of the index."""
        with self._at_last_commit() as (_, snapshot):
            meta = snapshot.meta
            return IndexInfo(
                path=os.fspath(self.path),
                format_version=FORMAT_VERSION,
                images=len(snapshot),
                removed=meta.count - len(snapshot),
                bits=meta.bits,
                feature_dim=meta.feature_dim,
                features=meta.features,
                fingerprint=meta.fingerprint,
                model=meta.model,
                commit=meta.commit,
                bytes_on_disk=sum(f.stat().st_size for f in self.path.iterdir() if f.is_file()),
            )

    def label_counts(self) -> dict[str | None, int]:
        """Number of images with each label, by name; None are those without."""
        with self._at_last_commit() as (transaction, _):
            return searching.label_counts(transaction.connection)

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

    @overload
    def search(
        self,
        query: list[Query],
        k: int = ...,
        mode: Mode = ...,
        radius: int | None = ...,
        where: Mapping[str, Any] | None = ...,
        pool: int | None = ...,
        trace: SearchTrace | None = ...,
    ) -> list[list[Hit]]: ...

    @overload
    def search(
        self,
        query: Query,
        k: int = ...,
        mode: Mode = ...,
        radius: int | None = ...,
        where: Mapping[str, Any] | None = ...,
        pool: int | None = ...,
        trace: SearchTrace | None = ...,
    ) -> list[Hit]: ...

    def search(
        self,
        query: Query | list[Query],
        k: int = 10,
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        pool: int | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the images most like a query, nearest first, ties by id.

        Parameters
        ----------
        query : image, path, or int; or a list of these
            An int is the id of an image in the index, which then comes first itself. A list is
            answered together, and gives a list of lists.
        k : int
            At most k results a query.
        mode : {"hds", "bcs", "es"}
            Coarse by codes then fine by features; codes only; or exhaustive over features.
        radius : int, optional
            ``hds`` and ``bcs``: only images within this Hamming distance.
        where : mapping, optional
            ``label`` or metadata keys, to a value, a list of values, or {">=": value, ...}.
        pool : int, optional
            ``hds`` without radius: images that the fine search looks at.
        trace : SearchTrace, optional
            ``hds`` adds its times and pools.

        Raises
        ------
        ImageError
            If an image cannot be read.
        InvalidInputError
            If an argument does not fit.
        IndexStoreError
            If the index is damaged, or no encoder was given for an image.
        """
        queries = query if isinstance(query, list) else [query]
        encoded = searching.encode_queries(queries, self._encoder, self.path)
        with self._at_last_commit() as (transaction, snapshot):
            codes, features = searching.fill_in_ids(transaction.connection, snapshot, encoded)
            found = self._find(
                transaction,
                snapshot,
                codes,
                features,
                k,
                mode,
                radius,
                where,
                None,
                pool,
                trace,
            )
            hits = searching.to_hits(
                transaction.connection, snapshot, codes, found, euclidean=mode != "bcs"
            )
        return hits if isinstance(query, list) else hits[0]

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        k: int,
        *,
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        exclude: Ids | None = None,
        pool: int | None = None,
    ) -> SearchResult:
        """Search with encoded queries; see :class:`hashlens.protocols.Searcher`.

        Parameters
        ----------
        codes, features, k, mode, radius, where, exclude
            As in the protocol.
        pool : int, optional
            ``hds`` without radius: images that the fine search looks at.
        """
        with self._at_last_commit() as (transaction, snapshot):
            return self._find(
                transaction, snapshot, codes, features, k, mode, radius, where, exclude, pool
            )

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
        """As ``search_encoded``, with records: a list of hits for each query, of one commit.

        Parameters
        ----------
        codes, features, k, mode, radius, where, exclude, pool
            As in ``search_encoded``.
        trace : SearchTrace, optional
            ``hds`` adds its times and pools.
        """
        with self._at_last_commit() as (transaction, snapshot):
            found = self._find(
                transaction, snapshot, codes, features, k, mode, radius, where, exclude, pool, trace
            )
            return searching.to_hits(
                transaction.connection, snapshot, codes, found, euclidean=mode != "bcs"
            )

    def histogram(
        self,
        code: Codes,
        where: Mapping[str, Any] | None = None,
        exclude: int | None = None,
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code.

        Parameters
        ----------
        code : ndarray of shape (bytes,), uint8
            A packed code.
        where : mapping, optional
            As in ``search``.
        exclude : int, optional
            The id of an image that is not counted.

        Returns
        -------
        ndarray of shape (bits + 1,), int64
        """
        with self._at_last_commit() as (transaction, snapshot):
            matching = snapshot.matching(transaction.connection, where)
            searcher = snapshot.searcher(transaction.connection)
            bits = snapshot.meta.bits
            found = hamming_radius(searcher.codes, np.atleast_2d(code), bits, allowed=matching)
            distances = found.distances
            if exclude is not None:
                distances = distances[searcher.to_ids(found.ids) != exclude]
            return np.bincount(distances, minlength=bits + 1).astype(np.int64)

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
            return searching.records(transaction.connection, ids)

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        with self._at_last_commit() as (transaction, _):
            return searching.ids_by_uri(transaction.connection)

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features (as stored) of images; of all, by id, without ``ids``."""
        with self._at_last_commit() as (transaction, snapshot):
            if ids is None:
                at = snapshot.living()
            else:
                at = searching.positions(transaction.connection, check_ids(ids))
            return snapshot.ids[at], snapshot.codes[at], snapshot.features[at]

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """Groups of images whose codes differ in at most ``radius`` bits, by an exact self-join.

        Parameters
        ----------
        radius : int
            In bits; 0 finds equal codes.
        progress : callable, optional
            Called with the number of pairs found since the last call.
        """
        with self._at_last_commit() as (transaction, snapshot):
            searcher = snapshot.searcher(transaction.connection)
            allowed = snapshot.matching(transaction.connection, None)
        return find_duplicates(searcher, radius, allowed, progress)

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

    def _find(
        self,
        transaction: Transaction,
        snapshot: Snapshot,
        codes: Any,
        features: Any,
        k: int,
        mode: Mode,
        radius: int | None,
        where: Mapping[str, Any] | None,
        exclude: Ids | None,
        pool: int | None,
        trace: SearchTrace | None = None,
    ) -> SearchResult:
        codes = check_width(codes, snapshot.meta.bits)
        matching = snapshot.matching(transaction.connection, where)
        return snapshot.searcher(transaction.connection).search_encoded(
            codes,
            features,
            k,
            mode=mode,
            radius=radius,
            exclude=exclude,
            pool=pool,
            allowed=matching,
            trace=trace,
        )

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
                        if last_try or self._meta().generation == transaction.meta.generation:
                            raise
                        continue
                    self._snapshot = snapshot
                yield transaction, snapshot
                return

    def _meta(self) -> Meta:
        with self.store.reading() as transaction:
            return transaction.meta
