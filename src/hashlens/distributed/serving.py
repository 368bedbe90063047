"""Several front ends on Ray Serve, which share the actors of one index in shards.

    serve run hashlens.distributed.serving:build index=/data/shop.idx front_ends=2

Two deployments: ``Shards``, one process that owns the shards' actors and alone changes the index,
and ``FrontEnd``, the service of ``hashlens serve`` as many times as asked for. Front ends search
through the actors directly, and send what they are given to add or remove to ``Shards``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashlens.distributed.catalogue import read_catalogue
from hashlens.distributed.cluster import START_SECONDS, Answers, Replicas, load_ray
from hashlens.distributed.sharded import DEADLINE_SECONDS, ShardedIndex
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError, MissingExtraError
from hashlens.index.writing import GivenRows
from hashlens.models.description import require_own_place
from hashlens.models.encoder import Encoder
from hashlens.types import Ids

if TYPE_CHECKING:
    from fastapi import FastAPI


_YES_NO = {"true": True, "false": False}


@dataclass(frozen=True)
class FrontEndOptions:
    """What ``build`` takes as ``name=value``."""

    index: Path  # folder of the index in shards; every node must reach it
    model: Path | None = None  # directory or exported file; else the one the index remembers
    front_ends: int = 2
    replicas: int = 1  # actors per shard
    deadline: float = DEADLINE_SECONDS  # seconds that a replica has for an answer
    require_all: bool = False  # fail when a shard does not answer
    host_names: tuple[str, ...] = ()  # that requests may ask for; else this machine's; * is any


def parse_options(given: Mapping[str, str]) -> FrontEndOptions:
    """Options from words."""
    known = {field.name for field in fields(FrontEndOptions)}
    if unknown := sorted(set(given) - known):
        raise InvalidInputError(
            f"expected options of {', '.join(sorted(known))}; got {', '.join(unknown)}"
        )
    if "index" not in given:
        raise InvalidInputError("expected index=FOLDER, the index in shards")
    read: dict[str, Callable[[str], Any]] = {
        "index": lambda text: Path(text).absolute(),
        "model": lambda text: Path(text).absolute(),
        "front_ends": int,
        "replicas": int,
        "deadline": float,
        "require_all": lambda text: _YES_NO[text.lower()],
        "host_names": lambda text: tuple(text.lower().split(",")),
    }
    values = {}
    for name, text in given.items():
        try:
            values[name] = read[name](str(text))
        except (ValueError, KeyError):
            wanted = "true or false" if name == "require_all" else "a number"
            raise InvalidInputError(f"{name}: expected {wanted}, got {text!r}") from None
    options = FrontEndOptions(**values)
    if options.front_ends < 1:
        raise InvalidInputError(f"front_ends: expected 1 or more, got {options.front_ends}")
    return options


_SHARDS = "Shards"
_RENEW_SECONDS = 5.0
_REQUESTS = 100


def build(args: dict[str, str]) -> Any:
    """The Ray Serve application: for ``serve run`` and configuration files.

    The key for writing is that of ``HASHLENS_API_KEY`` in the environment of this process;
    without one the front ends are read-only.
    """
    load_ray()
    try:
        from ray import serve

        from hashlens.service.limits import read_key
    except ImportError as error:
        raise MissingExtraError("several front ends", "ray,serve") from error
    options = parse_options(args)
    read_catalogue(options.index)
    key = read_key()
    deployment: Any = serve.deployment
    shards = deployment(
        Shards,
        name=_SHARDS,
        max_ongoing_requests=_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )
    front_end = deployment(
        serve.ingress(lambda: _front_end(options, key))(),
        name="FrontEnd",
        num_replicas=options.front_ends,
        max_ongoing_requests=_REQUESTS,
    )
    return front_end.bind(shards.bind(str(options.index), options.replicas, options.deadline))


class Shards:
    """Owns the shards' actors, which end with it, and changes the index for all front ends."""

    def __init__(self, folder: str, replicas: int, deadline: float) -> None:
        self._index = ShardedIndex.open(folder, replicas=replicas, deadline=deadline)
        self._writing = asyncio.Lock()

    async def actors(self) -> list[list[Any]]:
        """The actors of each shard."""
        return await asyncio.to_thread(self._index.actors)

    async def add_rows(self, *arguments: Any) -> Ids:
        async with self._writing:
            return await asyncio.to_thread(self._index.add_rows, *arguments)

    async def remove(self, ids: Any) -> None:
        async with self._writing:
            await asyncio.to_thread(self._index.remove, ids)


class SharedReplicas(Replicas):
    """Actors that another process started: asked for again when some do not answer."""

    def __init__(self, ray: Any, fetch: Callable[[], list[list[Any]]], deadline: float) -> None:
        super().__init__(ray, "", 0, deadline)
        self._fetch = fetch
        self._next_renewal = 0.0

    def _reach(self, position: int) -> bool:
        if position < len(self.actors):
            return False
        self.actors = self._fetch()
        return True

    def ask(
        self, calls: Mapping[int, tuple[Any, ...]], *, repeat: bool = True, **options: Any
    ) -> Answers:
        """As ``Replicas.ask``; shards that were started again meanwhile are asked again."""
        answers = super().ask(calls, repeat=repeat, **options)
        if not (answers.missing and repeat and self._renew()):
            return answers
        missing = {position: calls[position] for position in answers.missing}
        again = super().ask(missing, repeat=repeat, **options)
        return Answers({**answers.values, **again.values}, again.missing)

    def _renew(self) -> bool:
        """Whether there are other actors than before; looked up every few seconds at most."""
        with self._lock:
            if time.monotonic() < self._next_renewal:
                return False
            self._next_renewal = time.monotonic() + _RENEW_SECONDS
        try:
            fetched = self._fetch()
        except HashlensError:
            return False
        known = [set(actors) for actors in self.actors]
        self.actors = fetched
        return [set(actors) for actors in fetched] != known

    def stop(self) -> None:
        """Forget the actors, which are another's."""
        self.actors = []


class FrontIndex(ShardedIndex):
    """The index as a front end has it: searched through shared actors, changed by ``Shards``."""

    def __init__(self, options: FrontEndOptions, shards: Any, encoder: Encoder | None) -> None:
        self._shards = shards
        replicas = SharedReplicas(load_ray(), lambda: self._ask_owner("actors"), options.deadline)
        super().__init__(options.index, replicas, require_all=options.require_all, encoder=encoder)

    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        ids: Ids = self._ask_owner("add_rows", codes, features, rows)
        self._file.current(again=True)
        return ids

    def remove(self, ids: Any) -> None:
        self._ask_owner("remove", ids)

    def _change(
        self, calls: Mapping[int, tuple[Any, ...]], *, deadline: float | None = None
    ) -> dict[int, Any]:
        raise IndexStoreError(
            f"{self.path}: a front end adds and removes images; for other changes open the index "
            "with ShardedIndex.open"
        )

    def _ask_owner(self, name: str, *arguments: Any) -> Any:
        ray = load_ray()
        try:
            return getattr(self._shards, name).remote(*arguments).result(timeout_s=START_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise IndexStoreError(
                f"{self.path}: the process that owns the shards does not answer; look at it with "
                "`serve status`"
            ) from error


def _front_end(options: FrontEndOptions, key: str | None) -> FastAPI:
    """The app of one front end; called where it runs."""
    from ray import serve

    from hashlens.service.app import create_app
    from hashlens.service.limits import Limits
    from hashlens.service.security import LOOPBACK

    def open_index() -> FrontIndex:
        shards = serve.get_deployment_handle(_SHARDS, serve.get_replica_context().app_name)
        model = options.model or read_catalogue(options.index).model
        if model is not None and not options.model:
            require_own_place(Path(model), Path(options.index))
        encoder = None if model is None else Encoder.load(model)
        index = FrontIndex(options, shards, encoder)
        len(index)  # the actors answer
        return index

    # Serve calls this on an event loop, where its handles do not wait for answers
    with ThreadPoolExecutor(1) as aside:
        index: Any = aside.submit(open_index).result()
    names = options.host_names or LOOPBACK
    return create_app(
        index, index.encoder, Limits(), api_key=key, host_names=None if "*" in names else names
    )
