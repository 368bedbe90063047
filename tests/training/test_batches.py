"""Batches: each image once, the same order for every restart and number of processes."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from hashlens import InvalidInputError
from hashlens.training.data import Batch, HeldPixels, TrainingBatches, ValidationBatches

PIXELS = HeldPixels(torch.arange(50 * 4, dtype=torch.uint8).reshape(50, 2, 2, 1))
TARGETS = np.arange(50) % 3
ROWS = np.arange(5, 48)


def _training(epoch: int = 0, seed: int = 1, **options: object) -> list[Batch]:
    batches = TrainingBatches(
        PIXELS,
        TARGETS,
        ROWS,
        batch_size=8,
        seed=seed,
        epoch=lambda: epoch,
        **options,  # type: ignore[arg-type]
    )
    result = list(batches)
    assert len(result) == len(batches)
    return result


def _rows(batches: Iterable[Batch]) -> list[int]:
    return torch.cat([batch.rows for batch in batches]).tolist()


def test_each_image_at_most_once_and_full_batches_only() -> None:
    batches = _training()
    rows = _rows(batches)
    assert len(rows) == len(set(rows)) == 40
    assert set(rows) <= set(ROWS.tolist())
    for batch in batches:
        np.testing.assert_array_equal(batch.targets, TARGETS[batch.rows])
        np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.rows * 4)


def test_seed_and_epoch_decide_the_order() -> None:
    assert _rows(_training(epoch=3)) == _rows(_training(epoch=3))
    assert _rows(_training(epoch=3)) != _rows(_training(epoch=4))
    assert _rows(_training(epoch=3)) != _rows(_training(epoch=3, seed=2))


def test_two_processes_together_see_what_one_does() -> None:
    whole = _training(epoch=2)
    parts = [_training(epoch=2, rank=rank, world=2) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in Batch._fields:
            ours = torch.stack([getattr(first, name), getattr(second, name)], dim=1).flatten(0, 1)
            torch.testing.assert_close(ours, getattr(batch, name), rtol=0, atol=0)


def test_an_image_is_mirrored_every_other_epoch() -> None:
    sides = [{}, {}]
    for epoch, side in enumerate(sides):
        for batch in _training(epoch=epoch):
            side.update(zip(batch.rows.tolist(), batch.draws[:, 0].tolist(), strict=True))
    both = set(sides[0]) & set(sides[1])
    assert len(both) > 20
    assert all({sides[0][row], sides[1][row]} == {0.0, 0.5} for row in both)


def test_weights_decide_how_often_a_row_is_drawn() -> None:
    weights = np.zeros(len(ROWS))
    weights[:4] = 0.25
    assert set(_rows(_training(weights=weights))) <= set(ROWS[:4].tolist())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_counts_each_image_once(world: int) -> None:
    rows = []
    for rank in range(world):
        batches = ValidationBatches(PIXELS, TARGETS, ROWS, batch_size=7, rank=rank, world=world)
        rows += _rows(batches)
        assert len(list(batches)) == len(batches)
    assert sorted(rows) == ROWS.tolist()


def test_every_process_has_an_image() -> None:
    with pytest.raises(InvalidInputError, match=r"at least 9 images in a batch, .*, got 8"):
        _training(world=9)
    with pytest.raises(InvalidInputError, match=r"at least 3 validation images, .*, got 2"):
        ValidationBatches(PIXELS, TARGETS, ROWS[:2], batch_size=7, rank=0, world=3)


class _Slow(HeldPixels):
    """Makes the second batch wait until it is let go."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(50, 2, 2, 1))
        self.calls, self.finished, self.let_go = 0, 0, threading.Event()

    def gather(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        if self.calls > 1:
            self.let_go.wait(30)
        self.finished += 1
        return super().gather(rows)


def test_batches_that_are_dropped_wait_for_nothing() -> None:
    slow = _Slow()
    batches = iter(TrainingBatches(slow, TARGETS, ROWS, batch_size=8, seed=1, epoch=lambda: 0))
    next(batches)
    del batches  # waiting here would swallow a Ctrl-C
    assert slow.finished == 1
    slow.let_go.set()
