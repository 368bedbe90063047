"""Concurrent images are encoded together; the queue is bounded, abandoned work is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from hashlens.service.errors import busy

Item = TypeVar("Item")
Result = TypeVar("Result")


class Slots:
    """A bound on what runs or waits; past it a request is refused instead of queued."""

    def __init__(self, capacity: int, what: str) -> None:
        self.capacity = capacity
        self.taken = 0
        self._what = what

    @contextlib.asynccontextmanager
    async def take(self, count: int = 1) -> AsyncIterator[None]:
        """Hold ``count`` slots."""
        if self.taken + count > self.capacity:
            raise busy(self._what)
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    done: asyncio.Future[Result]


class BatchQueue(Generic[Item, Result]):
    """Gathers items that arrive close together and runs them as one batch."""

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        size: int,
        wait: float,
    ) -> None:
        self._run = run
        self._size = size
        self._wait = wait
        self._queue: asyncio.Queue[_Waiting[Item, Result]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; call inside the event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop; items that run or wait fail with CancelledError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while not self._queue.empty():
            self._queue.get_nowait().done.cancel()

    async def submit(self, item: Item) -> Result:
        """The result of ``item``; cancelling the caller drops it if it has not begun."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(item, done))
        return await done

    async def _gather(self) -> list[_Waiting[Item, Result]]:
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self._wait
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    while len(batch) < self._size:
                        batch.append(await self._queue.get())
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.done.cancel()
            raise
        return [waiting for waiting in batch if not waiting.done.done()]

    async def _work(self) -> None:
        while True:
            batch = await self._gather()
            if not batch:
                continue
            try:
                results = await self._run([waiting.item for waiting in batch])
            except asyncio.CancelledError:
                for waiting in batch:
                    waiting.done.cancel()
                raise
            except Exception as error:
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                continue
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(result)
