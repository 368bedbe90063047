"""The queue that encodes together, and the bound on what waits."""

from __future__ import annotations

import asyncio

import pytest

from hashlens.service.engine import BatchQueue
from hashlens.service.schemas import Refused
from hashlens.service.security import Slots


class Recorder:
    """Doubles numbers, remembers its batches, and waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.go.wait()
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def test_waiting_items_run_together_and_in_bounded_batches() -> None:
    async def scenario() -> tuple[list[list[int]], list[int]]:
        recorder = Recorder()
        queue = BatchQueue(recorder.run, size=4)
        queue.start()
        first = asyncio.create_task(queue.submit(0))
        while not recorder.batches:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(queue.submit(i)) for i in range(1, 7)]
        await asyncio.sleep(0)
        recorder.go.set()
        answers = await asyncio.gather(first, *rest)
        await queue.stop()
        return recorder.batches, answers

    batches, answers = asyncio.run(scenario())
    assert answers == [0, 2, 4, 6, 8, 10, 12]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_item_nobody_awaits_is_dropped() -> None:
    async def scenario() -> list[list[int]]:
        recorder = Recorder()
        queue = BatchQueue(recorder.run, size=4)
        queue.start()
        first = asyncio.create_task(queue.submit(0))
        while not recorder.batches:
            await asyncio.sleep(0)
        gone, stays = asyncio.create_task(queue.submit(1)), asyncio.create_task(queue.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        recorder.go.set()
        assert await asyncio.gather(first, stays) == [0, 4]
        await queue.stop()
        return recorder.batches

    assert asyncio.run(scenario()) == [[0], [2]]


def test_a_failed_batch_fails_its_items_and_the_queue_goes_on() -> None:
    async def scenario() -> int:
        recorder = Recorder()
        recorder.go.set()
        queue = BatchQueue(recorder.run, size=4)
        queue.start()
        with pytest.raises(ValueError, match="thirteen"):
            await queue.submit(13)
        answer = await queue.submit(4)
        await queue.stop()
        return answer

    assert asyncio.run(scenario()) == 8


def test_stopping_leaves_nobody_waiting() -> None:
    async def scenario() -> list[BaseException | int]:
        recorder = Recorder()
        queue = BatchQueue(recorder.run, size=1)
        queue.start()
        tasks = [asyncio.create_task(queue.submit(i)) for i in range(3)]
        while not recorder.batches:
            await asyncio.sleep(0)
        await queue.stop()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(scenario())
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3


def test_stopping_leaves_nobody_waiting_for_a_batch_that_runs() -> None:
    async def scenario() -> list[BaseException | int]:
        queue = BatchQueue(Recorder().run, size=4)
        queue.start()
        task = asyncio.create_task(queue.submit(1))
        await asyncio.sleep(0.01)  # taken into a batch that runs
        await queue.stop()
        async with asyncio.timeout(5):
            return await asyncio.gather(task, return_exceptions=True)

    (result,) = asyncio.run(scenario())
    assert isinstance(result, asyncio.CancelledError)


def test_past_its_bound_work_is_refused_and_slots_come_back() -> None:
    async def scenario() -> tuple[Refused, int]:
        slots = Slots(3, "test")
        async with slots.take(2):
            async with slots.take():
                with pytest.raises(Refused) as refusal:
                    async with slots.take():
                        pass
            with pytest.raises(Refused):
                async with slots.take(2):
                    pass
        with pytest.raises(RuntimeError):
            async with slots.take(3):
                raise RuntimeError
        return refusal.value, slots.taken

    refusal, taken = asyncio.run(scenario())
    assert taken == 0
    assert refusal.status_code == 503
    assert refusal.headers == {"Retry-After": "1"}
