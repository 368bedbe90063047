"""Searching shards as one index: fan out, merge, rank where the features lie."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.codes.packing import check_codes, code_bytes
from hashlens.distributed.catalogue import Catalogue, CatalogueFile, Shard
from hashlens.distributed.merge import merge
from hashlens.distributed.replicas import Answers, Replicas
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.arrays import SearchTrace, default_pool
from hashlens.protocols import Codes, Encoder, Features, Ids, Mode, SearchResult


class ShardedResult(SearchResult):
    """A result that says which shards it lacks.

    Attributes
    ----------
    missing : tuple of str
        Folders of shards that did not answer; empty if the result is whole.
    """

    missing: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether a shard is missing."""
        return bool(self.missing)


class ShardedSearcher:
    """Coarse search in every shard, an exact merge, fine search where the features lie.

    The global pool is found by merging by (distance, id), so only ids and distances travel.

    Parameters
    ----------
    folder : Path
        Folder of the sharded index.
    replicas : Replicas
        Its actors.
    require_all : bool
        Raise when a shard does not answer, rather than answer without it.
    encoder : Encoder, optional
        Needed to search by image.
    """

    def __init__(
        self,
        folder: Path,
        replicas: Replicas,
        *,
        require_all: bool = False,
        encoder: Encoder | None = None,
    ) -> None:
        self.path = folder
        self.encoder = encoder
        self.require_all = require_all
        self._file = CatalogueFile(folder)
        self._replicas = replicas

    @property
    def _catalogue(self) -> Catalogue:
        return self._file.current()

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, as the catalogue has them."""
        return self._catalogue.shards

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self._catalogue.bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self._catalogue.feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds."""
        return self._catalogue.fingerprint

    @property
    def model(self) -> str | None:
        """Where the encoder's model lies, if known."""
        return self._catalogue.model

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
    ) -> ShardedResult:
        """Search with encoded queries; see :class:`hashlens.protocols.Searcher`.

        Parameters
        ----------
        codes, features, k, mode, radius, where, exclude
            As in the protocol.
        pool : int, optional
            ``hds`` without radius: images that the fine search looks at.

        Returns
        -------
        ShardedResult
            Equal to that of one index of the same images, while ``missing`` is empty.

        Raises
        ------
        IndexStoreError
            If ``require_all`` and a shard did not answer, or none did.
        """
        return self._search(codes, features, k, mode, radius, where, exclude, pool, SearchTrace())

    def _search(
        self,
        codes: Codes,
        features: Features | None,
        k: int,
        mode: Mode,
        radius: int | None,
        where: Mapping[str, Any] | None,
        exclude: Ids | None,
        pool: int | None,
        trace: SearchTrace,
    ) -> ShardedResult:
        result = self._find(codes, features, k, mode, radius, where, exclude, pool, trace)
        trace.missing += result.missing
        return result

    def _find(
        self,
        codes: Codes,
        features: Features | None,
        k: int,
        mode: Mode,
        radius: int | None,
        where: Mapping[str, Any] | None,
        exclude: Ids | None,
        pool: int | None,
        trace: SearchTrace,
    ) -> ShardedResult:
        codes = check_codes(codes, "query codes")
        if codes.shape[1] != code_bytes(self.bits):
            raise InvalidInputError(
                f"query codes: expected {code_bytes(self.bits)} bytes a code ({self.bits} bits), "
                f"got {codes.shape[1]}"
            )
        if mode == "hds" and radius is None and features is not None and k >= 1:
            return self._coarse_to_fine(codes, features, k, where, exclude, pool, trace)
        started = time.perf_counter()
        call = ("search", codes, features, k, mode, radius, where, exclude, pool)
        found, missing = self._gather(dict.fromkeys(range(len(self.shards)), call))
        trace.coarse += time.perf_counter() - started
        return self._result(merge(found, k), missing)

    def _coarse_to_fine(
        self,
        codes: Codes,
        features: Features,
        k: int,
        where: Mapping[str, Any] | None,
        exclude: Ids | None,
        pool: int | None,
        trace: SearchTrace,
    ) -> ShardedResult:
        started = time.perf_counter()
        spare = 0 if exclude is None else 1
        size = (pool or default_pool(k)) + spare
        coarse = ("search", codes, None, size, "bcs", None, where, None, None)
        found, missing = self._gather(dict.fromkeys(range(len(self.shards)), coarse))
        pools = merge(found, size).ids
        trace.pools += (pools >= 0).sum(axis=1).tolist()
        trace.coarse += time.perf_counter() - started
        started = time.perf_counter()
        if exclude is not None:
            pools = np.where(pools == np.asarray(exclude)[:, None], -1, pools)
        holders = self._holders(pools)
        call = ("rank", np.ascontiguousarray(features, np.float32), pools, k)
        ranked, late = self._gather(dict.fromkeys(holders, call))
        trace.fine += time.perf_counter() - started
        if not holders:
            width = min(k, pools.shape[1])
            nothing = np.full((len(codes), width), np.inf, np.float32)
            return self._result(SearchResult(np.full(nothing.shape, -1), nothing), missing)
        return self._result(merge(ranked, k), (*missing, *late))

    def _holders(self, ids: Ids) -> list[int]:
        """Positions of the shards that hold some of the ids."""
        if ids.max(initial=-1) >= self._catalogue.next_id:  # a shard knows more than we do
            self._file.current(anew=True)
        return [i for i, s in enumerate(self.shards) if (s.to_local(ids) >= 0).any()]

    def _gather(
        self, calls: Mapping[int, tuple[Any, ...]]
    ) -> tuple[list[SearchResult], tuple[int, ...]]:
        answers = self._replicas.ask(calls)
        self._check_missing(answers)
        return [answers.values[i] for i in sorted(answers.values)], answers.missing

    def _check_missing(self, answers: Answers) -> None:
        if answers.missing and (self.require_all or not answers.values):
            raise self._unanswered(answers.missing)

    def _result(self, result: SearchResult, missing: Sequence[int]) -> ShardedResult:
        whole = ShardedResult(*result)
        whole.missing = tuple(self.shards[i].folder for i in sorted(set(missing)))
        return whole

    def _unanswered(self, missing: Sequence[int]) -> IndexStoreError:
        names = ", ".join(self.shards[i].folder for i in missing)
        return IndexStoreError(
            f"{self.path}: no replica of {names} answered in time; look at the cluster with "
            "`ray status`, or give more replicas"
        )

    def _ask_all(self, *call: Any, deadline: float | None = None) -> dict[int, Any]:
        """The answers of all shards; raises if one does not answer."""
        calls = dict.fromkeys(range(len(self.shards)), call)
        answers = self._replicas.ask(calls, deadline=deadline)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values

    def _ask_some(self, *call: Any) -> dict[int, Any]:
        """The answers of the shards that answer; raises if all must, or none does."""
        answers = self._replicas.ask(dict.fromkeys(range(len(self.shards)), call))
        self._check_missing(answers)
        return answers.values
