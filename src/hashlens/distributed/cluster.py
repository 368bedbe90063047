"""A Ray cluster: joining or starting one, and asking shards there, with replicas and deadlines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.asymmetric import asymmetric_distances
from hashlens.codes.packing import code_bytes
from hashlens.distributed.catalogue import CatalogueFile, Shard
from hashlens.errors import HashlensError, InvalidInputError, MissingExtraError
from hashlens.index.features import distances_to_rows
from hashlens.index.hash_index import HashIndex
from hashlens.index.writing import GivenRows, add_images, update_image
from hashlens.machine import own_memory
from hashlens.types import (
    Codes,
    Features,
    Ids,
    Latent,
    Mode,
    Record,
    SearchOptions,
    SearchResult,
)

LOCAL = "local"


def load_ray() -> Any:
    """The ``ray`` module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("a sharded index", "ray") from error
    return ray


def stay_on_loopback() -> None:
    """Have the cluster that is started next listen on 127.0.0.1 alone.

    Ray replaces 127.0.0.1 by an address that other machines reach, unless it is told that there
    are none, as it is by default on Windows and macOS.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def connect(address: str | None = None) -> Any:
    """The ``ray`` module, connected to a cluster."""
    ray = load_ray()
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if not address or address == LOCAL:
            os.environ.pop("RAY_ADDRESS", None)
            stay_on_loopback()
            ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises what it is, or Exception itself
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not address or address == LOCAL:
            raise HashlensError(
                f"Ray could not be started on this machine: {first_line}"
            ) from error
        raise HashlensError(
            f"no Ray cluster answers at {address} ({first_line}); start one with "
            "`ray start --head`, or use --ray local"
        ) from error
    return ray


START_SECONDS = 120.0
"""How long actors may take to start."""
_TURN_SECONDS = 0.05


class Answers(NamedTuple):
    """What the shards said, by their positions, and those of which no replica answered in time."""

    values: dict[int, Any]
    missing: tuple[int, ...]


class Replicas:
    """The actors of all shards.

    A replica that failed or was late is asked last from then on, until it answers again. Ray
    restarts an actor whose process died, and repeats the call on it; a call to a lost node never
    comes back, which is what the deadline is for.
    """

    def __init__(self, ray: Any, folder: str, count: int, deadline: float) -> None:
        self._ray = ray
        self._folder = folder
        self._count = count
        self._deadline = deadline
        self.actors: list[list[Any]] = []  # of each shard that was asked so far
        self._lock = threading.Lock()

    def _reach(self, position: int) -> bool:
        """Have actors for the shards up to a position; whether some were started."""
        with self._lock:
            known = len(self.actors)
            server = self._ray.remote(ShardServer).options(
                num_cpus=0, max_restarts=-1, scheduling_strategy="SPREAD"
            )
            for new in range(known, position + 1):
                self.actors.append([server.remote(self._folder, new) for _ in range(self._count)])
            return len(self.actors) > known

    def ask(
        self,
        calls: Mapping[int, tuple[Any, ...]],
        *,
        everyone: bool = False,
        repeat: bool = True,
        deadline: float | None = None,
    ) -> Answers:
        """Call a method of some shards at the same time."""
        values: dict[int, Any] = {}
        waiting: dict[Any, tuple[int, int, float]] = {}
        tries = dict.fromkeys(calls, 0)
        started = bool(calls) and self._reach(max(calls))
        seconds = deadline or (START_SECONDS if started else self._deadline)

        def send(position: int) -> None:
            name, *arguments = calls[position]
            actor = self.actors[position][tries[position]]
            method = getattr(actor, name).options(max_task_retries=-1 if repeat else 0)
            reference = method.remote(*arguments)
            waiting[reference] = (position, tries[position], time.monotonic() + seconds)
            tries[position] += 1

        for position in calls:
            for _ in range(len(self.actors[position]) if everyone else 1):
                send(position)
        failed: list[tuple[int, int]] = []
        while waiting:
            first_limit = min(limit for _, _, limit in waiting.values())
            timeout = min(max(0.0, first_limit - time.monotonic()), _TURN_SECONDS)
            # for all at once, since each wait costs time; in turns, so that a failure is seen soon
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout)
            now = time.monotonic()
            late = [ref for ref, (_, _, limit) in waiting.items() if limit <= now]
            for reference in ready or late:
                position, replica, _ = waiting.pop(reference)
                answered = bool(ready) and self._take(reference, position, values)
                if not answered:
                    failed.append((position, replica))
                    if repeat and not everyone and tries[position] < len(self.actors[position]):
                        send(position)
        self._ask_last(failed)
        return Answers(values, tuple(sorted(set(calls) - set(values))))

    def _take(self, reference: Any, position: int, values: dict[int, Any]) -> bool:
        """Whether the answer is there; an error that the shard raised itself is raised here."""
        try:
            values[position] = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (self._ray.exceptions.RayError, TimeoutError):
            return False
        return True

    def _ask_last(self, failed: list[tuple[int, int]]) -> None:
        for position, replica in sorted(failed, reverse=True):
            actors = self.actors[position]
            actors.append(actors.pop(replica))

    def stop(self) -> None:
        """End the actors."""
        for actor in (actor for actors in self.actors for actor in actors):
            self._ray.kill(actor)
        self.actors = []


class ShardServer:
    """Answers for one shard. A Ray actor; restarted by Ray, it opens its shard again."""

    def __init__(self, folder: str, position: int) -> None:
        self._catalogue = CatalogueFile(Path(folder))
        self._position = position
        self._index = HashIndex.open(Path(folder) / self._shard.folder)
        # maps the arrays and loads the kernels, which is no part of the first query's time
        code = np.zeros((1, code_bytes(self._index.bits)), np.uint8)
        feature = np.zeros((1, self._index.feature_dim), np.float32)
        options = SearchOptions(1, mode="hds" if feature.size else "bcs")
        self._index.search_encoded(code, feature, options)

    @property
    def _shard(self) -> Shard:
        return self._catalogue.current().shards[self._position]

    def refresh(self) -> None:
        """Read the catalogue again, after images were added."""
        self._catalogue.current(again=True)

    def held(self) -> tuple[int, int]:
        """Living images, and the first of this shard's own ids that no image ever had."""
        ids = self._index.ids()
        known = max((r.local + r.count for r in self._shard.ranges), default=0)
        return len(ids), max(known, int(ids.max(initial=-1)) + 1)

    def search(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
    ) -> SearchResult:
        """``search_encoded`` of this shard, with the ids of the sharded index."""
        shard = self._shard
        if options.exclude is not None:
            options = replace(options, exclude=shard.to_local(options.exclude))
        wanted = options
        while True:
            found = self._index.search_encoded(codes, features, wanted, latent)
            result = SearchResult(shard.to_global(found.ids), found.distances)
            # images committed here that the catalogue does not know yet must not take places
            unknown = int(((found.ids >= 0) & (result.ids < 0)).sum(axis=1).max(initial=0))
            if wanted.k >= options.k + unknown:
                return result
            wanted = replace(options, k=options.k + unknown)

    def rank(self, mode: Mode, asked: Features, pools: Ids, k: int) -> SearchResult:
        """The order of each query's pool in this shard, by its features or latent values."""
        local = self._shard.to_local(pools)
        wanted = np.unique(local[local >= 0])
        ids, codes, stored = self._index.encoded(wanted.tolist())
        width = min(k, pools.shape[1])
        result = SearchResult(
            np.full((len(pools), width), -1, np.int64),
            np.full((len(pools), width), np.inf, np.float32),
        )
        for row, pool in enumerate(local):
            at = np.searchsorted(ids, np.sort(pool[pool >= 0]))
            if mode == "acs":
                near = asymmetric_distances(codes[at], asked[row])
            else:
                near = distances_to_rows(stored, at, asked[row])
            order = np.argsort(near, kind="stable")[:width]
            result.ids[row, : len(order)] = self._shard.to_global(ids[at[order]])
            result.distances[row, : len(order)] = near[order]
        return result

    def ids(self) -> Ids:
        """Ids of all living images, ascending."""
        return self._known(self._index.ids())[0]

    def records(self, ids: Sequence[int] | None) -> list[Record]:
        """Records of images that are here; of all without ``ids``."""
        with self._naming(ids):
            found = self._index.records(None if ids is None else self._local(ids))
        numbers, at = self._known(np.array([record.id for record in found], np.int64))
        return [
            found[i]._replace(id=number)
            for i, number in zip(at.tolist(), numbers.tolist(), strict=True)
        ]

    def encoded(self, ids: Sequence[int] | None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features of images that are here; of all without ``ids``."""
        with self._naming(ids):
            found, codes, features = self._index.encoded(None if ids is None else self._local(ids))
        numbers, at = self._known(found)
        return numbers, codes[at], features[at]

    def file_digest(self, ids: Sequence[int]) -> bytes | None:
        """Digest of the file of one image that is here."""
        with self._naming(ids):
            return self._index.file_digest(self._local(ids)[0])

    def described(self, ids: Sequence[int]) -> tuple[Codes, list[Record]]:
        """Codes and records of images that are here; one removed meanwhile is passed over."""
        try:
            return self.encoded(ids)[1], self.records(ids)
        except InvalidInputError:
            local = np.array(self._local(ids), np.int64)
            ids = np.asarray(ids)[np.isin(local, self._index.ids())].tolist()
            return self.encoded(ids)[1], self.records(ids)

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        numbered = {
            uri: self._known(np.array(ids, np.int64))[0].tolist()
            for uri, ids in self._index.uris().items()
        }
        return {uri: ids for uri, ids in numbered.items() if ids}

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None, exclude: int | None
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code."""
        local = None if exclude is None else int(self._shard.to_local(np.array([exclude]))[0])
        return self._index.histogram(code, where, None if local == -1 else local)

    def label_counts(self) -> dict[str | None, int]:
        """Living images with each label."""
        return self._index.label_counts()

    def own_memory(self) -> int:
        """Bytes of memory that this process has to itself, without files that are mapped."""
        return own_memory()

    def info(self) -> dict[str, Any]:
        """``IndexInfo`` as a dictionary."""
        return asdict(self._index.info())

    def to_arrow(self) -> Any:
        """``HashIndex.to_arrow`` of this shard, with the ids of the sharded index."""
        table = self._index.to_arrow()
        numbers, at = self._known(table["id"].to_numpy())
        return table.take(at).set_column(0, table.schema.field("id"), [numbers])

    def verify(self) -> tuple[list[str], int]:
        """Lines for what is damaged in this shard, and the number of rows that were read."""
        rows: list[int] = []
        return self._index.verify(rows.append), sum(rows)

    def add(self, codes: Codes, features: Features, rows: GivenRows) -> Ids:
        """Add to this shard, in one commit; returns the shard's own ids."""
        return add_images(self._index.store, codes, features, rows)

    def replace_encoded(self, ids: Sequence[int], codes: Codes, features: Any) -> None:
        """Give images that are here new codes and features."""
        with self._naming(ids):
            self._index.replace_encoded(self._local(ids), codes, features)

    def update(self, image_id: int, changes: dict[str, Any], encoded: Any) -> None:
        """Change the record of an image that is here, and what it is searched by."""
        with self._naming([image_id]):
            (local,) = self._local([image_id])
            update_image(self._index.store, local, changes, encoded)

    def compact(self) -> int:
        """Drop removed rows; the number of them."""
        return self._index.compact()

    def remove(self, ids: Sequence[int]) -> None:
        """Remove images that are here, in one commit."""
        with self._naming(ids):
            self._index.remove(self._local(ids))

    def _known(self, local: Ids) -> tuple[Ids, Ids]:
        """Ids of the sharded index, and the places in ``local`` of those that have one."""
        numbers = self._shard.to_global(local)
        at = np.flatnonzero(numbers >= 0)
        return numbers[at], at

    def _local(self, ids: Sequence[int]) -> list[int]:
        local: list[int] = self._shard.to_local(np.array(ids, np.int64)).tolist()
        return local

    @contextmanager
    def _naming(self, ids: Sequence[int] | None) -> Iterator[None]:
        """An unknown id is named as the caller knows it."""
        try:
            yield
        except InvalidInputError:
            living = set(self._index.ids().tolist())
            for number, local in zip(ids or (), self._local(ids or ()), strict=True):
                if local not in living:
                    message = f"id {number}: no such image in the index"
                    raise InvalidInputError(message) from None
            raise


_FAR: dict[str, Any] = {"u": np.uint16(65535), "f": np.float32(np.inf)}


def merge(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The k nearest of several results of the same q queries."""
    ids = np.concatenate([part.ids for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    distances = np.where(ids < 0, _FAR[distances.dtype.kind], distances)
    # padding goes last, also behind a real result that is as far as can be
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), distances), axis=1)[:, :k]
    return SearchResult(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )
