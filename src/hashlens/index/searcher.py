"""Searching an index: by image, by the id of one of its images, or by code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.search import hamming_radius
from hashlens.index.arrays import SearchTrace
from hashlens.index.checks import check_width
from hashlens.index.duplicates import DuplicateGroups, find_duplicates
from hashlens.index.lookups import to_hits
from hashlens.index.queries import encode_queries, fill_in_ids
from hashlens.index.reader import IndexReader
from hashlens.index.records import Hit
from hashlens.index.snapshot import Snapshot
from hashlens.index.store import Transaction
from hashlens.protocols import Codes, Features, Ids, ImageInput, Mode, SearchResult

Query: TypeAlias = "ImageInput | int"


class IndexSearcher(IndexReader):
    """What an index answers without being changed; ``HashIndex`` adds what changes it."""

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
        encoded = encode_queries(queries, self._encoder, self.path)
        with self._at_last_commit() as (transaction, snapshot):
            codes, features = fill_in_ids(transaction.connection, snapshot, encoded)
            found = self._find(
                transaction,
                snapshot,
                codes,
                features,
                k,
                where,
                mode=mode,
                radius=radius,
                pool=pool,
                trace=trace,
            )
            hits = to_hits(transaction.connection, snapshot, codes, found, euclidean=mode != "bcs")
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
                transaction,
                snapshot,
                codes,
                features,
                k,
                where,
                mode=mode,
                radius=radius,
                exclude=exclude,
                pool=pool,
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
                transaction,
                snapshot,
                codes,
                features,
                k,
                where,
                mode=mode,
                radius=radius,
                exclude=exclude,
                pool=pool,
                trace=trace,
            )
            return to_hits(transaction.connection, snapshot, codes, found, euclidean=mode != "bcs")

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
            allowed = snapshot.matching(transaction.connection, where)
            searcher = snapshot.searcher(transaction.connection)
            bits = snapshot.meta.bits
            found = hamming_radius(searcher.codes, np.atleast_2d(code), bits, allowed=allowed)
            distances = found.distances
            if exclude is not None:
                distances = distances[searcher.to_ids(found.ids) != exclude]
            return np.bincount(distances, minlength=bits + 1).astype(np.int64)

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

    def _find(
        self,
        transaction: Transaction,
        snapshot: Snapshot,
        codes: Any,
        features: Any,
        k: int,
        where: Mapping[str, Any] | None,
        **options: Any,
    ) -> SearchResult:
        """Search one commit; the options are those of ``ArraySearcher.search_encoded``."""
        codes = check_width(codes, snapshot.meta.bits)
        allowed = snapshot.matching(transaction.connection, where)
        searcher = snapshot.searcher(transaction.connection)
        return searcher.search_encoded(codes, features, k, allowed=allowed, **options)
