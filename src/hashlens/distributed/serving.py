"""The search page and the HTTP API over shards on Ray Serve.

    serve run hashlens.distributed.serving:build index=/data/shop.idx replicas=2

A deployment for each shard, ``Shard-0000`` and so on, opens its snapshot read-only and has as many
replicas as asked for; ``Writer``, a single process, makes all changes; ``FrontEnd`` is the service
of ``hashlens serve``. Serve's router balances the replicas and leaves out those that fail.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hashlens.distributed.sharded import Change, ShardedIndex
from hashlens.distributed.snapshots import (
    Answers,
    Call,
    OpenShards,
    UnreadableShardError,
    read_manifest,
    shard_name,
    write_manifest,
)
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError, needs_extra
from hashlens.files import is_remote
from hashlens.models.description import require_own_place
from hashlens.models.encoder import Encoder

with needs_extra("shards on Ray Serve", "ray,serve"):
    from fastapi import FastAPI
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from ray import serve
    from ray.exceptions import RayError, RayTaskError

    from hashlens.service.limits import Limits, read_key
    from hashlens.service.security import LOOPBACK


class ServeOptions(BaseModel):
    """What ``build`` takes as ``name=value``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    index: str  # folder that every node reaches, or a URI that each process copies to its disk
    model: Path | None = None  # directory or exported file; else the one the index remembers
    front_ends: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)  # of each shard
    max_replicas: int = 0  # more than replicas: Serve adds some under load
    deadline: float = Field(2.0, gt=0)  # seconds that a shard has for an answer
    require_all: bool = False  # fail when a shard does not answer
    host_names: str = ""  # that requests may ask for, with commas; else this machine's; * is any


_REQUESTS = 100
_WRITE_SECONDS = 600.0
_PATIENT_SECONDS = 3600.0
_REST_SECONDS = 5.0  # a shard that did not answer is left out for so long, then one search tries it


def build(args: dict[str, str]) -> Any:
    """The Ray Serve application: for ``serve run`` and configuration files.

    The key for writing is that of ``HASHLENS_API_KEY`` in the environment of this process;
    without one the front ends are read-only.
    """
    try:
        options = ServeOptions.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidInputError(f"{name}: {first['msg'].lower()}, got {args.get(name)!r}") from None
    shards = len(read_manifest(options.index).shards)
    key = read_key()
    if key and is_remote(options.index):
        raise InvalidInputError(
            f"{options.index}: is read from copies, so that it cannot be changed by a service; "
            "unset HASHLENS_API_KEY, or serve a folder that all machines share"
        )
    deployment: Any = serve.deployment
    writer = deployment(Writer, max_ongoing_requests=_REQUESTS, ray_actor_options={"num_cpus": 0})
    front_end = deployment(
        serve.ingress(lambda: _front_end(options, key, shards))(),
        name="FrontEnd",
        num_replicas=options.front_ends,
        max_ongoing_requests=_REQUESTS,
    )
    most = max(options.replicas, options.max_replicas)
    shard = deployment(
        ServedShard,
        max_ongoing_requests=_REQUESTS,
        health_check_period_s=5,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={"min_replicas": options.replicas, "max_replicas": most},
    )
    names = (shard_name(p).capitalize() for p in range(shards))
    served = [shard.options(name=n).bind(options.index, p) for p, n in enumerate(names)]
    return front_end.bind(writer.bind(options.index), *served)


class ServedShard:
    """A replica of one shard. Calls run in threads, so that one does not wait for another."""

    def __init__(self, index: str, position: int) -> None:
        self._index, self._position, self._shard = index, position, OpenShards(index)
        self._follow()

    async def ask(self, *call: Any) -> Any:
        """As ``OpenShards.ask_one``."""
        return await asyncio.to_thread(self._shard.ask_one, *call)

    async def check_health(self) -> None:
        """As Serve asks for it; a shard that cannot be read is tried again by each search."""
        await asyncio.to_thread(self._follow)

    def _follow(self) -> None:
        """Open the newest version ahead; what is open goes on where storage does not answer."""
        with suppress(HashlensError, OSError):
            self._shard.ask_one(read_manifest(self._index).shards[self._position].folder, len)


class Writer:
    """The one process that changes the index, for all front ends."""

    def __init__(self, index: str) -> None:
        self._index = ShardedIndex(Path(index).absolute())
        self._writing = asyncio.Lock()
        self._waiting: list[tuple[Change, asyncio.Future[Any]]] = []

    async def write(self, change: Change) -> Any:
        """Make a change; those that come meanwhile are published together, as the next version."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, outcome))
        async with self._writing:
            if self._waiting:
                taken, self._waiting = self._waiting, []
                changes = [each for each, _ in taken]
                found = await asyncio.to_thread(self._index.together, changes)
                for (_, future), result in zip(taken, found, strict=True):
                    future.set_result(result)
        result = await outcome
        if isinstance(result, Exception):
            raise result
        return result


class ServedShards:
    """Asks the deployments of the shards, each within the deadline; a later shard has none."""

    def __init__(self, handles: list[Any], deadline: float) -> None:
        self._handles, self._deadline = handles, deadline
        self._resting: dict[int, float] = {}  # until when a shard that did not answer is left out
        self._lock = threading.Lock()

    def ask(self, calls: Mapping[int, Call], *, patient: bool = False) -> Answers:
        """Ask each shard; other errors than unreadable shards are raised."""
        answers = Answers({}, dict.fromkeys(calls))
        ends = time.monotonic() + (_PATIENT_SECONDS if patient else self._deadline)
        waiting: dict[int, Any] = {}
        for position in filter(self._may_ask, calls):
            waiting[position] = None
            with suppress(Exception):  # a handle whose router is not ready: tried once more below
                waiting[position] = self._handles[position].ask.remote(*calls[position])
        for position, response in waiting.items():
            for again in (False, True):
                try:
                    if response is None or again:
                        response = self._handles[position].ask.remote(*calls[position])
                    left = max(0.0, ends - time.monotonic())
                    answers.values[position] = response.result(timeout_s=left)
                    del answers.missing[position]
                    break
                except RayTaskError as error:
                    if not isinstance(error.cause, UnreadableShardError):
                        raise error.cause from None
                    answers.missing[position] = error.cause
                    break
                except TimeoutError:
                    response.cancel()
                    break
                except Exception:  # a replica that died: asked again; Serve's errors share no base
                    continue
            with self._lock:
                if position in answers.values or answers.missing[position] is not None:
                    self._resting.pop(position, None)
                else:
                    self._resting[position] = time.monotonic() + _REST_SECONDS
        return answers

    def _may_ask(self, position: int) -> bool:
        """Whether a shard is not resting; of those who find its rest over, the first tries it."""
        with self._lock:
            until, now = self._resting.get(position), time.monotonic()
            if until is not None and until <= now:
                self._resting[position] = now + _REST_SECONDS
            return position < len(self._handles) and (until is None or until <= now)


def _front_end(options: ServeOptions, key: str | None, shards: int) -> FastAPI:
    """The app of one front end; called where it runs."""
    from hashlens.service.app import create_app  # loads what a shard does without

    app_name = serve.get_replica_context().app_name
    handle = partial(serve.get_deployment_handle, app_name=app_name)
    writer = handle("Writer")

    def write(change: Change) -> Any:
        try:
            return writer.write.remote(change).result(timeout_s=_WRITE_SECONDS)
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, TimeoutError) as error:
            raise IndexStoreError(
                f"{options.index}: the process that makes changes does not answer; look at it "
                "with `serve status`"
            ) from error

    def open_index() -> ShardedIndex:
        folder = Path(tempfile.mkdtemp() if is_remote(options.index) else options.index).absolute()
        if is_remote(options.index):
            write_manifest(folder, read_manifest(options.index))
        handles = [handle(shard_name(position).capitalize()) for position in range(shards)]
        asked = ServedShards(handles, options.deadline)
        index = ShardedIndex(folder, shards=asked, write=write, require_all=options.require_all)
        model = options.model or index.model
        if options.model is None and model is not None:
            require_own_place(Path(model), folder)
        if model is not None:
            index.encoder = Encoder.load(model)
        if is_remote(options.index):
            following = (options.index, folder, asked)
            threading.Thread(target=_follow, args=following, daemon=True).start()
        return index

    # Serve calls this on an event loop, where its handles do not wait for answers
    with ThreadPoolExecutor(1) as aside:
        index: Any = aside.submit(open_index).result()
    names = options.host_names.lower().split(",") if options.host_names else LOOPBACK
    return create_app(
        index, index.encoder, Limits(), api_key=key, host_names=None if "*" in names else names
    )


def _follow(uri: str, folder: Path, asked: ServedShards) -> None:
    """Go on to each new version behind a URI, once its shards have copied their snapshots."""
    while True:
        time.sleep(_REST_SECONDS)
        with suppress(HashlensError, OSError):  # storage that is away is tried again
            manifest = read_manifest(uri)
            if manifest != read_manifest(folder):
                calls = {p: (shard.folder, len) for p, shard in enumerate(manifest.shards)}
                asked.ask(calls, patient=True)
                write_manifest(folder, manifest)
