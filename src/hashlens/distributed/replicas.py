"""Asking every shard, with replicas, retries and a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from hashlens.distributed.actor import ShardServer

START_SECONDS = 120.0
"""How long actors may take to start."""
_TURN_SECONDS = 0.05


class Answers(NamedTuple):
    """What the shards said.

    Attributes
    ----------
    values : dict of int to object
        By the shard's position.
    missing : tuple of int
        Shards of which no replica answered in time.
    """

    values: dict[int, Any]
    missing: tuple[int, ...]


class Replicas:
    """The actors of all shards.

    A replica that failed or was late is asked last from then on, until it answers again. Ray
    restarts an actor whose process died, and repeats the call on it; a call to a lost node never
    comes back, which is what the deadline is for.

    Parameters
    ----------
    ray : module
        Connected.
    folder : str
        Folder of the sharded index.
    count : int
        Replicas of each shard, on different nodes where there are enough.
    deadline : float
        Seconds that a replica has for an answer.
    """

    def __init__(self, ray: Any, folder: str, count: int, deadline: float) -> None:
        self._ray = ray
        self._folder = folder
        self._count = count
        self._deadline = deadline
        self._actors: list[list[Any]] = []
        self._lock = threading.Lock()

    @property
    def actors(self) -> list[list[Any]]:
        """The actors of each shard that was asked so far."""
        return self._actors

    def _reach(self, position: int) -> bool:
        """Have actors for the shards up to a position; whether some were started."""
        with self._lock:
            known = len(self._actors)
            server = self._ray.remote(ShardServer).options(
                num_cpus=0, max_restarts=-1, scheduling_strategy="SPREAD"
            )
            for new in range(known, position + 1):
                self._actors.append([server.remote(self._folder, new) for _ in range(self._count)])
            return len(self._actors) > known

    def ask(
        self,
        calls: Mapping[int, tuple[Any, ...]],
        *,
        everyone: bool = False,
        repeat: bool = True,
        deadline: float | None = None,
    ) -> Answers:
        """Call a method of some shards at the same time.

        Parameters
        ----------
        calls : mapping of int to tuple
            By the shard's position: the method's name, then its arguments.
        everyone : bool
            Ask all replicas of each shard, not the first that answers; for changes of what they
            hold in memory. A replica that does not answer is left out.

        repeat : bool
            Whether a call may run twice: not where it changes the shard.
        deadline : float, optional
            Another deadline for this call, in seconds.

        Raises
        ------
        HashlensError
            As the method raises it.
        """
        values: dict[int, Any] = {}
        waiting: dict[Any, tuple[int, int, float]] = {}
        tries = dict.fromkeys(calls, 0)
        started = bool(calls) and self._reach(max(calls))
        seconds = deadline or (START_SECONDS if started else self._deadline)

        def send(position: int) -> None:
            name, *arguments = calls[position]
            actor = self._actors[position][tries[position]]
            method = getattr(actor, name).options(max_task_retries=-1 if repeat else 0)
            reference = method.remote(*arguments)
            waiting[reference] = (position, tries[position], time.monotonic() + seconds)
            tries[position] += 1

        for position in calls:
            for _ in range(len(self._actors[position]) if everyone else 1):
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
                    if repeat and not everyone and tries[position] < len(self._actors[position]):
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
            actors = self._actors[position]
            actors.append(actors.pop(replica))

    def stop(self) -> None:
        """End the actors."""
        for actor in (actor for actors in self._actors for actor in actors):
            self._ray.kill(actor)
        self._actors = []
