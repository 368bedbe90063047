"""Batches in a seeded order: the same for every restart and every number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.training.pixels import Pixels

DRAWS = 5
"""Random numbers an image gets for its augmentation."""


class Batch(NamedTuple):
    """Some training or validation images.

    Attributes
    ----------
    inputs : tensor
        (b, size, size, channels) uint8 pixels, or (b, d) float32 features.
    targets : tensor
        (b,) int64 classes, or (b, classes) bool labels.
    draws : tensor of shape (b, DRAWS), float32
        Uniform in [0, 1); the first is 0 or 0.5 by turns over the epochs. Empty for validation.
    rows : tensor of shape (b,), int64
        Which images these are.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    draws: torch.Tensor
    rows: torch.Tensor


class TrainingBatches:
    """One pass over the training images, in an order that seed and epoch alone decide.

    Order and augmentation are drawn for the whole batch and then divided, so that several
    processes together see what one would. A last batch that is not full is left out.

    Parameters
    ----------
    inputs : Pixels
        Images, or features, by row.
    targets : ndarray of shape (n,), int64, or of shape (n, classes), bool
        Labels by row.
    rows : ndarray of shape (m,), int64
        The rows to train on.
    batch_size : int
        Over all processes together.
    seed : int
        Decides the order.
    epoch : callable
        Returns the number of the epoch that starts.
    weights : ndarray of shape (m,), float64, optional
        Chance of each row to be drawn, with repetition; None: each row once.
    rank, world : int
        This process, and how many there are.

    Raises
    ------
    InvalidInputError
        If a batch has no image for some of the processes.
    """

    def __init__(
        self,
        inputs: Pixels,
        targets: NDArray[np.int64] | NDArray[np.bool_],
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        weights: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._inputs, self._targets, self._rows = inputs, torch.from_numpy(targets), rows
        self._batch_size = min(batch_size, len(rows))
        self._seed, self._epoch, self._weights = seed, epoch, weights
        self._rank, self._world = rank, world
        _check_share("images in a batch", self._batch_size, world)

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        # What layers draw themselves, such as dropout, starts anew as well.
        torch.manual_seed(self._seed + 1_000_003 * epoch + self._rank)
        generator = np.random.default_rng((self._seed, epoch))
        if self._weights is None:
            order = generator.permutation(len(self._rows))
        else:
            order = generator.choice(len(self._rows), len(self._rows), p=self._weights)
        draws = generator.random((len(order), DRAWS), dtype=np.float32)
        # Every image is mirrored every other time: an epoch of half, then the other half.
        side = np.random.default_rng(self._seed).integers(0, 2, len(self._rows))
        draws[:, 0] = 0.5 * ((side[order] + epoch) % 2)
        slices = [
            slice(start + self._rank, start + self._batch_size, self._world)
            for start in range(0, len(self) * self._batch_size, self._batch_size)
        ]
        with ThreadPoolExecutor(1, "batches") as ahead:
            coming = ahead.submit(self._batch, order[slices[0]], draws[slices[0]])
            for following in [*slices[1:], None]:
                batch = coming.result()
                if following is not None:
                    coming = ahead.submit(self._batch, order[following], draws[following])
                yield batch

    def _batch(self, order: NDArray[np.int64], draws: NDArray[np.float32]) -> Batch:
        return _readable_batch(
            self._inputs, self._targets, self._rows[order], torch.from_numpy(draws)
        )


class ValidationBatches:
    """Every validation image once, divided over the processes.

    Parameters
    ----------
    inputs : Pixels
        Images, or features, by row.
    targets : ndarray of shape (n,), int64, or of shape (n, classes), bool
        Labels by row.
    rows : ndarray of shape (m,), int64
        The rows to validate on.
    batch_size : int
        Of each process.
    rank, world : int
        This process, and how many there are.

    Raises
    ------
    InvalidInputError
        If there is no image for some of the processes.
    """

    def __init__(
        self,
        inputs: Pixels,
        targets: NDArray[np.int64] | NDArray[np.bool_],
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._inputs, self._targets = inputs, torch.from_numpy(targets)
        self._rows, self._batch_size = rows[rank::world], batch_size
        _check_share("validation images", len(rows), world)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            rows = self._rows[start : start + self._batch_size]
            yield _readable_batch(self._inputs, self._targets, rows, torch.zeros(len(rows), 0))


def _check_share(what: str, images: int, world: int) -> None:
    if images < world:
        raise InvalidInputError(
            f"expected at least {world} {what}, one for each process, got {images}; use fewer "
            "devices, a larger batch size, or more images"
        )


def _readable_batch(
    inputs: Pixels, targets: torch.Tensor, rows: NDArray[np.int64], draws: torch.Tensor
) -> Batch:
    chosen, readable = inputs.gather(rows)
    places = torch.from_numpy(rows)
    batch = Batch(chosen, targets[places], draws, places)
    return batch if bool(readable.all()) else Batch(*(part[readable] for part in batch))
