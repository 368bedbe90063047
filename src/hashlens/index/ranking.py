"""Coarse to fine over arrays: binary codes first, finer distances inside the pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.database import Allowed, CodeDatabase, allow
from hashlens.codes.packing import unpack_bits
from hashlens.codes.search import asymmetric_distances, hamming_radius, hamming_topk
from hashlens.codes.threads import run_all, split, thread_count
from hashlens.errors import InvalidInputError
from hashlens.index.features import RowNorms, check_features, distances_to_rows, nearest_candidates
from hashlens.types import (
    Codes,
    DuplicateGroups,
    Features,
    Ids,
    Latent,
    Mode,
    SearchOptions,
    SearchResult,
    SearchTrace,
)

_NO_HAMMING = np.uint16(65535)
_POOLS_AT_A_TIME = 64


class ArraySearcher:
    """The four ways to search, over codes and features in memory or memory-mapped.

    Examples
    --------
    >>> import numpy as np
    >>> searcher = ArraySearcher(np.array([[0], [3], [1]], np.uint8))
    >>> options = SearchOptions(2, mode="bcs")
    >>> searcher.search_encoded(np.array([[1]], np.uint8), None, options).ids
    array([[2, 0]])
    """

    def __init__(
        self,
        codes: Any,
        features: Any = None,
        *,
        ids: Ids | None = None,
        rows: Ids | None = None,
        norms: RowNorms | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        if isinstance(codes, CodeDatabase) and ids is not None:
            # of an index, whose ids ascend; codes may have been added since
            self.codes, self._all = codes, allow(allowed, len(ids))
        else:
            self.codes = CodeDatabase(codes)
            self._all = allow(allowed, len(self.codes))
            if ids is not None and (len(ids) != len(self) or bool((np.diff(ids) <= 0).any())):
                raise InvalidInputError(f"ids: expected {len(self)} ascending values, one per code")
        if ids is not None and len(ids) and ids[0] == 0 and ids[-1] == len(ids) - 1:
            ids = None  # each is its own slot
        self._ids = ids
        self._fine = None if features is None else FineSearch(features, rows, len(self), norms)

    def __len__(self) -> int:
        return self._all.n

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        *,
        allowed: NDArray[np.bool_] | Allowed | None = None,
        trace: SearchTrace | None = None,
    ) -> SearchResult:
        """Search with q encoded queries (:class:`hashlens.types.Searcher`), among allowed slots."""
        if options.where and allowed is None:
            raise InvalidInputError("where: arrays hold no labels or metadata; use a HashIndex")
        allowed = self._all if allowed is None else allow(allowed, len(self))
        k, mode = options.k, options.mode
        excluded = None if options.exclude is None else self._slots_of(options.exclude, len(codes))
        # One more than asked for, so that leaving one out leaves enough.
        more = k if excluded is None else k + 1
        if mode == "bcs":
            result = self._by_codes(codes, more, options.radius, allowed)
        elif mode == "es":
            fine, queries = self._fine_search(codes, features, mode)
            result = self._empty_result(len(codes), more, allowed)
            fine.nearest(queries, more, allowed.mask if len(allowed.mask) else None, result)
        else:
            distances: PoolDistances = self._asymmetric_distances
            if mode == "hds":
                fine, queries = self._fine_search(codes, features, mode)
                distances = fine.distances
            else:
                queries = check_latent(latent, codes)
            result = self._empty_result(len(codes), k, allowed)
            trace = trace or SearchTrace()
            self._coarse_to_fine(
                distances, codes, queries, options, allowed, excluded, result, trace
            )
            excluded = None
        if excluded is not None:
            result = _without(result, excluded, k)
        return SearchResult(self.to_ids(result.ids), result.distances)

    def duplicates(
        self,
        radius: int,
        allowed: Allowed | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> DuplicateGroups:
        """Groups of images whose codes differ in at most ``radius`` bits."""
        from hashlens.codes.pairs import group_pairs, hamming_pairs  # loads numba

        def pairs() -> Iterator[tuple[Ids, Ids]]:
            mask = allowed.mask if allowed is not None and len(allowed.mask) else None
            codes = self.codes.packed(np.arange(len(self)))
            for left, right, _ in hamming_pairs(codes, radius, allowed=mask):
                if progress is not None:
                    progress(len(left))
                yield left, right

        groups, total = group_pairs(len(self), pairs())
        return DuplicateGroups([self.to_ids(rows).tolist() for rows in groups], total)

    def _fine_search(self, codes: Codes, features: Any, mode: Mode) -> tuple[FineSearch, Features]:
        """What ranks by features, and the queries' features, checked."""
        if self._fine is None or self._fine.width == 0:
            raise InvalidInputError(
                f"mode {mode} needs features, and only codes are held; use acs or bcs"
            )
        if features is None:
            raise InvalidInputError(f"mode {mode} needs the queries' features; got codes only")
        return self._fine, self._fine.check_queries(features, len(codes))

    def to_ids(self, slots: Ids) -> Ids:
        """Ids of slots (places in ``codes``); -1 stays."""
        if self._ids is None or not slots.size:
            return slots
        return np.where(slots >= 0, self._ids[slots], -1)

    def _slots_of(self, ids: Ids, count: int) -> Ids:
        """Slots of one id per query, -1 where there is none."""
        if ids.shape != (count,):
            raise InvalidInputError(f"exclude: expected shape ({count},), got {ids.shape}")
        if self._ids is None:
            return np.where(ids < len(self), ids, -1)
        slots = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
        return np.where(self._ids[slots] == ids, slots, -1) if len(self) else np.full(count, -1)

    def _by_codes(self, codes: Codes, k: int, radius: int | None, allowed: Allowed) -> SearchResult:
        distances, slots = hamming_topk(self.codes, codes, k, allowed=allowed)
        if radius is not None:
            beyond = distances > radius
            slots[beyond], distances[beyond] = -1, _NO_HAMMING
        return SearchResult(slots, distances)

    def _coarse_to_fine(
        self,
        distances: PoolDistances,
        codes: Codes,
        asked: NDArray[np.float32],
        options: SearchOptions,
        allowed: Allowed,
        excluded: Ids | None,
        result: SearchResult,
        trace: SearchTrace,
    ) -> None:
        radius, pool = options.radius, options.pool_size
        for at in range(0, len(codes), _POOLS_AT_A_TIME):
            queries = slice(at, at + _POOLS_AT_A_TIME)
            began = time.perf_counter()
            if radius is None:
                more = pool if excluded is None else pool + 1
                pools = list(hamming_topk(self.codes, codes[queries], more, allowed=allowed)[1])
            else:
                found = hamming_radius(self.codes, codes[queries], radius, allowed=allowed)
                pools = np.split(found.ids, found.offsets[1:-1])
            if excluded is not None:
                pools = [p[p != one] for p, one in zip(pools, excluded[queries], strict=True)]
                pools = pools if radius is not None else [p[:pool] for p in pools]
            found_pools = time.perf_counter()
            rank(distances, pools, asked[queries], result, at)
            trace.coarse += found_pools - began
            trace.fine += time.perf_counter() - found_pools
            trace.pools += [len(members) for members in pools]

    def _asymmetric_distances(self, slots: Ids, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        return asymmetric_distances(self.codes.packed(slots), latent)

    def _empty_result(self, queries: int, k: int, allowed: Allowed) -> SearchResult:
        """Rows to fill: as wide as k, or as many images as are allowed."""
        shape = (queries, min(k, allowed.available))
        return SearchResult(np.full(shape, -1, np.int64), np.full(shape, np.inf, np.float32))


def _without(result: SearchResult, unwanted: Ids, k: int) -> SearchResult:
    """Leave out one slot per query; a row that did not hold it loses its last."""
    found = (result.ids == unwanted[:, None]) & (result.ids >= 0)
    order = np.argsort(found, axis=1, kind="stable")
    ids = np.take_along_axis(result.ids, order, axis=1)
    distances = np.take_along_axis(result.distances, order, axis=1)
    if ids.shape[1]:
        last = found.any(axis=1)
        ids[last, -1] = -1
        distances[last, -1] = _NO_HAMMING if distances.dtype == np.uint16 else np.inf
    return SearchResult(ids[:, :k], distances[:, :k])


PoolDistances: TypeAlias = Callable[[Ids, NDArray[np.float32]], NDArray[np.float32]]
"""Distances (m,) of one query to m slots: what orders a pool."""


def rank(
    distances: PoolDistances,
    pools: list[Ids],
    queries: NDArray[np.float32],
    result: SearchResult,
    at: int,
) -> None:
    """Order each pool of slots into a row of ``result``, ties by slot."""

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            ids, apart = result.ids[at + i], result.distances[at + i]
            k = min(len(ids), len(pools[i]))
            if k:
                slots = np.sort(pools[i])
                found = distances(slots, queries[i])
                near = np.flatnonzero(found <= np.partition(found, k - 1)[k - 1])
                order = near[np.argsort(found[near], kind="stable")[:k]]
                ids[:k], apart[:k] = slots[order], found[order]

    if pools:
        run_all([partial(some, *part) for part in split(len(pools), thread_count())])


def check_latent(latent: Any, codes: Codes) -> Latent:
    """Latent values of queries as float32, or ``InvalidInputError``.

    A row of NaN stands for a query of which only the code is known: its bits as -1 and 1.
    """
    if latent is None:
        raise InvalidInputError(
            "mode acs needs the queries' latent values, which come with an image that Hashlens' "
            "own encoder encodes; use bcs where there are only codes"
        )
    values = np.array(latent, np.float32)
    fits = values.ndim == 2 and len(values) == len(codes)
    if not fits or -(-values.shape[1] // 8) != codes.shape[1]:
        raise InvalidInputError(
            f"latent: expected one row per query and one value per bit of {codes.shape[1]} bytes, "
            f"got shape {values.shape}"
        )
    known = ~np.isnan(values).all(axis=1)
    bits = unpack_bits(codes[~known], values.shape[1])
    values[~known] = 2 * bits.astype(np.float32) - 1
    if not np.isfinite(values).all():
        raise InvalidInputError("latent: expected finite values, got NaN or infinity")
    return values


class FineSearch:
    """Features that belong to n codes; a code is named by its slot, 0 to n - 1."""

    def __init__(
        self, features: Any, rows: Ids | None, slots: int, norms: RowNorms | None = None
    ) -> None:
        self._features = check_features(features)
        self.width = int(self._features.shape[1])
        self._norms = RowNorms() if norms is None else norms
        self._rows = rows
        self._slots = slots
        held = len(self._features) if rows is None else len(rows)
        if held != slots:
            raise InvalidInputError(
                f"features: expected {slots} rows, as many as codes, got {held}"
            )

    def check_queries(self, features: Any, count: int) -> Features:
        """Features of ``count`` queries as float32, or ``InvalidInputError``."""
        queries = np.ascontiguousarray(check_features(features, "query features"), np.float32)
        expected = (count, self.width)
        if queries.shape != expected:
            raise InvalidInputError(f"query features: expected {expected}, got {queries.shape}")
        if not np.isfinite(queries).all():
            raise InvalidInputError("query features: expected finite values, got NaN or infinity")
        return queries

    def nearest(
        self, queries: Features, k: int, allowed: NDArray[np.bool_] | None, result: SearchResult
    ) -> None:
        """Write the k nearest of all allowed slots into ``result``, of at most k columns."""
        if not result.ids.shape[1]:
            return
        slot_of, mask = self._slot_of_row(allowed)
        norms = self._norms.of(self._features)
        found = nearest_candidates(self._features, norms, queries, k, mask)
        pools = found if slot_of is None else [slot_of[rows] for rows in found]
        rank(self.distances, pools, queries, result, 0)

    def distances(self, slots: Ids, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Euclidean distances (m,) of a query's features (d,) to those of these slots."""
        rows = slots if self._rows is None else self._rows[slots]
        return distances_to_rows(self._features, rows, query)

    def _slot_of_row(
        self, allowed: NDArray[np.bool_] | None
    ) -> tuple[Ids | None, NDArray[np.bool_] | None]:
        """Each feature row's slot, and which rows are allowed."""
        if self._rows is None:
            return None, allowed
        slot_of = np.full(len(self._features), -1, np.int64)
        slot_of[self._rows] = np.arange(self._slots)
        mask = slot_of >= 0
        if allowed is not None:
            mask[self._rows] = allowed
        return slot_of, mask
