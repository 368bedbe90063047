"""Exact Hamming search over packed codes: checks, threads, order (distance, id); ``acs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.database import CodeDatabase, allow, blocks_of_rows, check_rows, check_width
from hashlens.codes.light import LightScan, suffices
from hashlens.codes.packing import check_codes, pack_bits, to_words, unpack_bits
from hashlens.errors import InvalidInputError
from hashlens.types import Codes, Ids, Latent

if TYPE_CHECKING:
    from hashlens.codes.rings import RingSearch
    from hashlens.codes.scan import Scan

# If fewer than one code in so many is allowed, the allowed ones are gathered and searched.
_GATHERED_PART = 8
_BITS_OF_BYTES = unpack_bits(np.arange(256, dtype=np.uint8)[:, None], 8).astype(np.float32)


class RadiusResult(NamedTuple):
    """Results of all queries, one after the other."""

    distances: NDArray[np.uint16]  # (m,)
    ids: Ids  # (m,)
    # (q + 1,): query i's results are ``offsets[i]:offsets[i + 1]``, ordered by (distance, id)
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
        Results per query; fewer if there are fewer codes.
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
        If shapes, dtypes or k do not fit; the message says what was expected.
    """
    if k < 0:
        raise InvalidInputError(f"k: expected 0 or more, got {k}")
    call = _prepare(database, queries, allowed)
    k = min(k, call.available)
    if k == 0 or call.queries == 0:
        return np.zeros((call.queries, k), np.uint16), np.zeros((call.queries, k), np.int64)
    distances, ids = call.search.nearest(k)
    return distances, call.original(ids)


def hamming_radius(
    database: Any, queries: Any, radius: int, *, allowed: Any = None
) -> RadiusResult:
    """All codes within ``radius`` bits of each query, exactly.

    Parameters
    ----------
    database : CodeDatabase, or array_like of shape (n, bytes), uint8
        Packed codes (``hashlens.pack_bits``); may be read-only or memory-mapped.
    queries : array_like of shape (q, bytes), uint8
        Packed codes of the same width.
    radius : int
        Largest distance, in bits.
    allowed : array_like of shape (n,), bool, optional
        Only codes where this is true are results.

    Returns
    -------
    RadiusResult
        Distances, ids, and where each query's results begin.

    Raises
    ------
    InvalidInputError
        If shapes, dtypes or radius do not fit.
    """
    if radius < 0:
        raise InvalidInputError(f"radius: expected 0 or more, got {radius}")
    call = _prepare(database, queries, allowed)
    if call.queries == 0:
        return RadiusResult(np.zeros(0, np.uint16), np.zeros(0, np.int64), np.zeros(1, np.int64))
    distances, ids, offsets = call.search.within(radius)
    return RadiusResult(distances, call.original(ids), offsets)


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

    Raises
    ------
    InvalidInputError
        If shapes or dtypes do not fit, or a row does not exist (as -1, which means no result).
    """
    query = check_codes(np.atleast_2d(query), "query")
    if isinstance(database, CodeDatabase):
        found = database.packed(rows)
    else:
        codes, at = check_codes(database, "database"), np.asarray(rows, np.int64)
        check_rows(at, len(codes))
        found = codes[at]
    check_width(found.shape[1], query, "query")
    distances: NDArray[np.uint16] = np.bitwise_count(found ^ query).sum(axis=1, dtype=np.uint16)
    return distances


def asymmetric_distances(codes: Codes, latent: Latent) -> NDArray[np.float32]:
    """Distances of a query's latent values from stored bits.

    The distance is the sum of abs(latent_j) over the bits j that differ from the query's own: the
    asymmetric distance of Gordo et al., *Asymmetric Distances for Binary Embeddings* (TPAMI 2014),
    up to a constant per query. A bit that the query is unsure of costs little. Equal codes have
    equal distances, to the last digit.

    Parameters
    ----------
    codes : ndarray of shape (m, ceil(bits / 8)), uint8
        Packed codes.
    latent : ndarray of shape (bits,), float32
        Layer H of the query before the sigmoid; bit j of its code is 1 where it is at least 0.

    Returns
    -------
    ndarray of shape (m,), float32
    """
    weights = np.zeros(8 * codes.shape[1], np.float32)
    weights[: len(latent)] = np.abs(latent)
    # What each value of a byte of differing bits adds, byte by byte.
    table = weights.reshape(-1, 8) @ _BITS_OF_BYTES.T
    differing = codes ^ pack_bits(latent[None] >= 0)
    distances: NDArray[np.float32] = table[np.arange(codes.shape[1]), differing].sum(axis=1)
    return distances


class _Call(NamedTuple):
    """A search with checked arguments."""

    search: LightScan | Scan | RingSearch
    queries: int
    available: int
    rows: Ids | None

    def original(self, ids: Ids) -> Ids:
        """Rows of the caller's database."""
        return ids if self.rows is None else self.rows[ids]


def _prepare(database: Any, queries: Any, allowed: Any) -> _Call:
    """Check the arguments, and choose how to search."""
    queries = check_codes(queries, "queries")
    if isinstance(database, CodeDatabase):
        check_width(database.n_bytes, queries, "queries")
        codes = database.current()
    else:
        database = check_codes(database, "database")
        check_width(database.shape[1], queries, "queries")
        codes = blocks_of_rows(database)
    words: NDArray[np.uint64] = np.ascontiguousarray(to_words(queries))
    in_numpy = codes.rings is None and suffices(len(words), codes.n * words.shape[1])
    if isinstance(database, CodeDatabase) and not in_numpy:
        database.prepare(len(queries))
        codes = database.current()
    n, mask, available = allow(allowed, codes.n)
    codes, rows = codes.first(n), None
    if len(mask) and available * _GATHERED_PART <= n:
        rows = np.flatnonzero(mask)
        packed = database.packed(rows) if isinstance(database, CodeDatabase) else database[rows]
        codes, mask = blocks_of_rows(packed), mask[:0]
    search: LightScan | Scan | RingSearch
    if in_numpy:
        search = LightScan(codes, words, mask)
    elif codes.rings is not None:  # numba is loaded only where it is used
        from hashlens.codes.rings import RingSearch

        search = RingSearch(codes.rings, codes.words, words, mask)
    else:
        from hashlens.codes.scan import Scan

        search = Scan(codes, words, mask)
    return _Call(search, len(words), available, rows)
