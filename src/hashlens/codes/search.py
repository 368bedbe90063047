"""Exact Hamming search over packed codes: checks, threads, order (distance, id)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.database import CodeDatabase, rows_snapshot
from hashlens.codes.packing import check_codes, to_words
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.errors import InvalidInputError
from hashlens.protocols import Codes, Ids

# Candidates are buffered where at most this part of the codes is wanted, else all are counted.
_BUFFERED_PART = 16
_BUFFER_BYTES = 1 << 27
_GATHERED_PART = 8


class RadiusResult(NamedTuple):
    """Results of all queries one after the other.

    Attributes
    ----------
    distances : ndarray of shape (m,), uint16
    ids : ndarray of shape (m,), int64
    offsets : ndarray of shape (q + 1,), int64
        Query i's results are ``offsets[i]:offsets[i + 1]``, ordered by (distance, id).
    """

    distances: NDArray[np.uint16]
    ids: Ids
    offsets: NDArray[np.int64]


def hamming_topk(
    database: Any, queries: Any, k: int, *, allowed: Any = None
) -> tuple[NDArray[np.uint16], Ids]:
    """The k nearest codes of each query, exactly.

    Parameters
    ----------
    database : CodeDatabase, or array_like of shape (n, bytes), uint8
        Packed codes (``hashlens.pack_bits``); may be read-only or memory-mapped.
    queries : array_like of shape (q, bytes), uint8
        Packed codes of the same width.
    k : int
        Results a query; more than there are returns what there is.
    allowed : array_like of shape (n,), bool, optional
        Only codes where this is true are results.

    Returns
    -------
    distances : ndarray of shape (q, min(k, allowed)), uint16
        In bits.
    ids : ndarray of the same shape, int64
        Rows of ``database``, ordered by (distance, id).

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or k do not fit.
    """
    if k < 0:
        raise InvalidInputError(f"k: expected 0 or more, got {k}")
    search = _Search(database, queries, allowed)
    k = min(k, search.available)
    if k == 0 or not len(search.queries):
        shape = (len(search.queries), k)
        return np.zeros(shape, np.uint16), np.zeros(shape, np.int64)
    if k * _BUFFERED_PART <= search.codes.n:
        distances, ids = search.nearest(k)
    else:
        distances, ids = search.nearest_of_many(k)
    return distances, search.original(ids)


def hamming_radius(
    database: Any, queries: Any, radius: int, *, allowed: Any = None
) -> RadiusResult:
    """All codes within ``radius`` bits of each query; parameters as in ``hamming_topk``.

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or radius do not fit.
    """
    if radius < 0:
        raise InvalidInputError(f"radius: expected 0 or more, got {radius}")
    search = _Search(database, queries, allowed)
    found = search.within(radius)
    return found._replace(ids=search.original(found.ids))


def hamming_distances(database: Any, query: Any, rows: Any) -> NDArray[np.uint16]:
    """Distances of one query to the given rows.

    Parameters
    ----------
    database : CodeDatabase, or array_like of shape (n, bytes), uint8
        Packed codes.
    query : array_like of shape (bytes,), uint8
        One packed code of the same width.
    rows : array_like of shape (m,), int64
        Rows of ``database``.

    Returns
    -------
    ndarray of shape (m,), uint16
        In bits.
    """
    query = check_codes(np.atleast_2d(query), "query")
    if isinstance(database, CodeDatabase):
        found = database.packed(rows)
    else:
        found = check_codes(database, "database")[np.asarray(rows, np.int64)]
    _check_width(found.shape[1], query)
    distances: NDArray[np.uint16] = np.bitwise_count(found ^ query).sum(axis=1, dtype=np.uint16)
    return distances


class _Search:
    """Checked arguments of one call, and the ways to answer it."""

    def __init__(self, database: Any, queries: Any, allowed: Any) -> None:
        packed = None
        if isinstance(database, CodeDatabase):
            self.codes = database.snapshot()
        else:
            packed = check_codes(database, "database")
            self.codes = rows_snapshot(packed)
        queries = check_codes(queries, "queries")
        _check_width(self.codes.n_bytes, queries)
        self.queries: NDArray[np.uint64] = np.ascontiguousarray(to_words(queries))
        self._ids: Ids | None = None
        self.allowed = np.zeros(0, np.bool_)
        self.available = self.codes.n
        if allowed is not None:
            self._restrict(database if packed is None else packed, allowed)

    def _restrict(self, database: CodeDatabase | Codes, allowed: Any) -> None:
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (self.codes.n,):
            raise InvalidInputError(
                f"allowed: expected bool of shape ({self.codes.n},), "
                f"got {mask.dtype} of {mask.shape}"
            )
        self.available = int(np.count_nonzero(mask))
        if self.available * _GATHERED_PART > self.codes.n:
            self.allowed = np.array(mask)  # copied: one layout, and the caller may go on writing
            return
        self._ids = np.flatnonzero(mask)
        packed = database.packed if isinstance(database, CodeDatabase) else database.__getitem__
        self.codes = rows_snapshot(packed(self._ids))

    def original(self, ids: Ids) -> Ids:
        """Rows of the caller's database."""
        return ids if self._ids is None else self._ids[ids]

    def nearest(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """Top-k through buffers of candidates, for k much smaller than n."""
        from hashlens.codes import kernels

        q, parts = len(self.queries), self._parts()
        capacity = max(2 * k, k + 64)
        distances = np.empty((q, k), np.uint16)
        ids = np.empty((q, k), np.int64)
        step = max(1, _BUFFER_BYTES // (10 * capacity * len(parts)))
        for at in range(0, q, step):
            queries = self.queries[at : at + step]
            shape = (len(parts), len(queries), capacity)
            found, found_ids = np.empty(shape, np.uint16), np.empty(shape, np.int64)
            counts = np.zeros(shape[:2], np.int64)
            shared = np.full(len(queries), 1 << 62, np.uint64)
            self._run(
                kernels.scan_nearest,
                queries,
                [(k, shared, found[t], found_ids[t], counts[t]) for t in range(len(parts))],
            )
            run_all(
                [
                    partial(
                        kernels.merge_nearest,
                        found,
                        found_ids,
                        counts,
                        first,
                        last,
                        distances[at : at + step],
                        ids[at : at + step],
                    )
                    for first, last in split(len(queries), len(parts) if q > 8 else 1)
                ]
            )
        return distances, ids

    def nearest_of_many(self, k: int) -> tuple[NDArray[np.uint16], Ids]:
        """Top-k by counting all distances first, for k that is no small part of n."""
        q, levels = len(self.queries), 64 * len(self.codes.words) + 1
        histograms = self._count(levels)
        reached = histograms.sum(axis=0).cumsum(axis=1)
        limits = (reached < k).sum(axis=1) + 1
        starts = np.arange(q, dtype=np.int64) * k
        result = self._place(histograms, limits, starts, starts + k, q * k)
        return result[0].reshape(q, k), result[1].reshape(q, k)

    def within(self, radius: int) -> RadiusResult:
        """All codes within ``radius`` bits."""
        levels = min(radius, 64 * len(self.codes.words)) + 1
        histograms = self._count(levels)
        totals = histograms.sum(axis=(0, 2))
        offsets = np.concatenate([[0], np.cumsum(totals)]).astype(np.int64)
        limits = np.full(len(self.queries), levels)
        found = self._place(histograms, limits, offsets[:-1], offsets[1:], int(offsets[-1]))
        return RadiusResult(*found, offsets)

    def _count(self, levels: int) -> NDArray[np.int64]:
        """Codes at each distance below ``levels``, (t, q, levels), for each of t threads."""
        from hashlens.codes import kernels

        parts = self._parts()
        histograms = np.zeros((len(parts), len(self.queries), levels), np.int64)
        arguments = [(np.uint64(levels), part) for part in histograms]
        self._run(kernels.count_within, self.queries, arguments)
        return histograms

    def _place(
        self,
        histograms: NDArray[np.int64],
        limits: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        size: int,
    ) -> tuple[NDArray[np.uint16], Ids]:
        """Write each query's codes below its limit in order, from its start to its end."""
        from hashlens.codes import kernels

        totals = histograms.sum(axis=0)
        places = np.cumsum(histograms, axis=0) - histograms  # those of earlier threads
        places += (np.cumsum(totals, axis=1) - totals + starts[:, None])[None]
        distances, ids = np.empty(size, np.uint16), np.empty(size, np.int64)
        arguments = [(limits.astype(np.uint64), part, ends, distances, ids) for part in places]
        self._run(kernels.place_within, self.queries, arguments)
        return distances, ids

    def _parts(self) -> list[tuple[int, int]]:
        """Ranges of blocks, one a thread."""
        from hashlens.codes import kernels

        return split(-(-self.codes.n // kernels.BLOCK), thread_count()) or [(0, 0)]

    def _run(
        self,
        kernel: Callable[..., None],
        queries: NDArray[np.uint64],
        arguments: list[tuple[Any, ...]],
    ) -> None:
        """Run a kernel over the parts of the database, each with its own last arguments."""
        codes = self.codes
        run_all(
            [
                partial(
                    kernel,
                    np.empty_like(codes.blocks) if len(codes.data) else codes.blocks,
                    codes.data,
                    codes.n_bytes,
                    first,
                    last,
                    codes.n,
                    queries,
                    codes.words,
                    self.allowed,
                    *own,
                )
                for (first, last), own in zip(self._parts(), arguments, strict=True)
            ]
        )


def _check_width(n_bytes: int, queries: Codes) -> None:
    if n_bytes != queries.shape[1]:
        raise InvalidInputError(
            f"queries: expected {n_bytes} bytes a code as in the database, "
            f"got {queries.shape[1]}; both must come from the same model"
        )
