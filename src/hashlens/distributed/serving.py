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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hashlens.distributed.cluster import load_ray
from hashlens.distributed.sharded import Answers, Shard, ShardedIndex
from hashlens.distributed.snapshots import fetch_shards, read_manifest
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError, MissingExtraError
from hashlens.files import is_remote, uri_path
from hashlens.models.description import require_own_place
from hashlens.models.encoder import Encoder

if TYPE_CHECKING:
    from fastapi import FastAPI


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
_REST_SECONDS = 5.0
"""How long a shard that did not answer is left out before one search tries it again."""


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
        raise MissingExtraError("shards on Ray Serve", "ray,serve") from error
    try:
        options = ServeOptions.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidInputError(f"{name}: {first['msg'].lower()}, got {args.get(name)!r}") from None
    with tempfile.TemporaryDirectory(prefix="hashlens-shards-") as folder:
        shards = len(read_manifest(Path(local_copy(options.index, folder, []))).shards)
    key = read_key()
    if key and is_remote(options.index):
        raise InvalidInputError(
            f"{options.index}: is read from copies, so that it cannot be changed by a service; "
            "unset HASHLENS_API_KEY, or serve a folder that all machines share"
        )
    deployment: Any = serve.deployment
    scaled: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas > options.replicas:
        limits = {"min_replicas": options.replicas, "max_replicas": options.max_replicas}
        scaled = {"autoscaling_config": limits}
    served = [
        deployment(
            ServedShard,
            name=f"Shard-{position:04d}",
            max_ongoing_requests=_REQUESTS,
            health_check_period_s=5,
            health_check_timeout_s=10,
            ray_actor_options={"num_cpus": 0},
            **scaled,
        ).bind(options.index, position)
        for position in range(shards)
    ]
    writer = deployment(Writer, max_ongoing_requests=_REQUESTS, ray_actor_options={"num_cpus": 0})
    front_end = deployment(
        serve.ingress(lambda: _front_end(options, key, shards))(),
        name="FrontEnd",
        num_replicas=options.front_ends,
        max_ongoing_requests=_REQUESTS,
    )
    return front_end.bind(writer.bind(options.index), *served)


def local_copy(index: str, folder: str, shards: Sequence[int]) -> str:
    """The index's folder; of a URI, ``folder``, with these shards copied into it."""
    if not is_remote(index):
        return str(Path(index).absolute())
    fetch_shards(index, Path(folder), shards)
    return folder


class ServedShard:
    """A replica of one shard. Calls run in threads, so that one does not wait for another."""

    def __init__(self, index: str, position: int) -> None:
        self._source, self._position = index, position
        self._copy = tempfile.TemporaryDirectory(prefix="hashlens-shard-")
        self._shard = Shard(local_copy(index, self._copy.name, [position]), position)
        self._shard.check_health()

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of :class:`Shard` by its name."""
        return await asyncio.to_thread(self._shard.ask, name, *arguments)

    async def check_health(self) -> None:
        """Raise where the shard cannot be read: Serve then starts another replica.

        Of a URI, a version that was published meanwhile is copied first.
        """
        await asyncio.to_thread(local_copy, self._source, self._copy.name, [self._position])
        await asyncio.to_thread(self._shard.check_health)


class Writer:
    """The one process that changes the index, for all front ends."""

    def __init__(self, index: str) -> None:
        self._index = index
        self._writing = asyncio.Lock()

    async def write(self, name: str, *arguments: Any) -> Any:
        """Call a method of :class:`ShardedIndex` that changes something."""
        async with self._writing:
            index = ShardedIndex.open(self._index)
            return await asyncio.to_thread(getattr(index, name), *arguments)


class ServedShards:
    """Asks the deployments of the shards, each within the deadline."""

    def __init__(self, handles: list[Any], deadline: float) -> None:
        self._handles, self._deadline = handles, deadline
        self._resting: dict[int, float] = {}  # until when a shard that did not answer is left out
        self._lock = threading.Lock()

    def ask(self, calls: Mapping[int, tuple[Any, ...]], *, patient: bool = False) -> Answers:
        """Call methods of :class:`Shard` by name; an error that a shard raised is raised here."""
        ray = load_ray()
        values: dict[int, Any] = {}
        asked = {position: call for position, call in calls.items() if self._may_ask(position)}
        ends = time.monotonic() + (_PATIENT_SECONDS if patient else self._deadline)
        waiting = {position: self._send(position, call) for position, call in asked.items()}
        for position, response in waiting.items():
            for again in (True, False):
                try:
                    values[position] = response.result(timeout_s=max(0.0, ends - time.monotonic()))
                    break
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, HashlensError):
                        raise
                    raise error.cause from None
                except TimeoutError:
                    response.cancel()
                    break
                except Exception:  # a replica that died; Serve's errors share no base
                    if not again:
                        break
                    response = self._send(position, asked[position])
            with self._lock:
                if position in values:
                    self._resting.pop(position, None)
                else:
                    self._resting[position] = time.monotonic() + _REST_SECONDS
        return Answers(values, tuple(sorted(set(calls) - set(values))))

    def _send(self, position: int, call: tuple[Any, ...]) -> Any:
        return self._handles[position].ask.remote(*call)

    def _may_ask(self, position: int) -> bool:
        """Whether a shard is not resting; of those who find its rest over, the first tries it.

        A shard that came after the application was started has no deployment, and is missing.
        """
        if position >= len(self._handles):
            return False
        with self._lock:
            until = self._resting.get(position)
            if until is None:
                return True
            if time.monotonic() < until:
                return False
            self._resting[position] = time.monotonic() + _REST_SECONDS
            return True


def _front_end(options: ServeOptions, key: str | None, shards: int) -> FastAPI:
    """The app of one front end; called where it runs."""
    from ray import serve

    from hashlens.service.app import create_app
    from hashlens.service.limits import Limits
    from hashlens.service.security import LOOPBACK

    ray = load_ray()
    app_name = serve.get_replica_context().app_name

    def handle(name: str) -> Any:
        return serve.get_deployment_handle(name, app_name)

    writer = handle("Writer")

    def write(name: str, *arguments: Any) -> Any:
        try:
            return writer.write.remote(name, *arguments).result(timeout_s=_WRITE_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise IndexStoreError(
                f"{options.index}: the process that makes changes does not answer; look at it "
                "with `serve status`"
            ) from error

    def open_index() -> ShardedIndex:
        folder = Path(local_copy(options.index, tempfile.mkdtemp(), []))
        stored = read_manifest(folder).model
        model = options.model or (uri_path(stored) if stored else None)
        if model is not None and not options.model:
            require_own_place(model, folder)
        encoder = None if model is None else Encoder.load(model)
        handles = [handle(f"Shard-{position:04d}") for position in range(shards)]
        asked = ServedShards(handles, options.deadline)
        return ShardedIndex(
            folder, encoder, shards=asked, write=write, require_all=options.require_all
        )

    # Serve calls this on an event loop, where its handles do not wait for answers
    with ThreadPoolExecutor(1) as aside:
        index: Any = aside.submit(open_index).result()
    names = options.host_names.lower().split(",") if options.host_names else LOOPBACK
    return create_app(
        index, index.encoder, Limits(), api_key=key, host_names=None if "*" in names else names
    )
