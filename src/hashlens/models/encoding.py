"""Encodes a whole labelled source, as training, evaluation and experiments need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes
from hashlens.data.source import Source
from hashlens.models.encoder import Encoder
from hashlens.protocols import Codes, EncodedBatch, Features, Ids, Skipped

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class EncodedImages:
    """The m readable images of a source, encoded.

    Attributes
    ----------
    codes : ndarray of shape (m, ceil(bits / 8)), uint8
    features : ndarray of shape (m, d), float32
    scores : ndarray of shape (m, classes), float32, or None
        Class scores before the softmax, where the encoder has a classifier.
    labels : ndarray of shape (m,), int64
        Places in the source's ``classes``; -1 where unlabelled.
    label_matrix : ndarray of shape (m, classes), bool, or None
        For multi-label sources.
    uris : tuple of str
        Where each image came from.
    positions : ndarray of shape (m,), int64
        Where each image stood in the source; ascending.
    skipped : tuple of Skipped
        Images that could not be read.
    """

    codes: Codes
    features: Features
    scores: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    label_matrix: NDArray[np.bool_] | None
    uris: tuple[str, ...]
    positions: Ids
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.codes)


def encode_source(
    encoder: Encoder,
    source: Source,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    strict: bool = False,
) -> EncodedImages:
    """Encode every readable image of a source.

    Parameters
    ----------
    encoder : Encoder
        The model.
    source : Source
        Images and labels; may be empty.
    batch_size : int
        Images in each run of the network.
    progress : callable, optional
        Called with the number of images done since the last call.
    strict : bool
        Raise on an unreadable image instead of skipping it.

    Raises
    ------
    ImageError
        If strict and an image cannot be read.
    """
    batches: list[EncodedBatch] = []
    for batch in encoder.encode_batches(source.uris, batch_size=batch_size, strict=strict):
        batches.append(batch)
        if progress is not None:
            progress(len(batch.positions) + len(batch.skipped))
    positions = _joined([batch.positions for batch in batches], np.zeros(0, np.int64))
    scores = [batch.scores for batch in batches if batch.scores is not None]
    no_scores = np.zeros((0, len(encoder.classes)), np.float32) if encoder.classes else None
    return EncodedImages(
        codes=_joined(
            [batch.codes for batch in batches], np.zeros((0, code_bytes(encoder.bits)), np.uint8)
        ),
        features=_joined(
            [batch.features for batch in batches], np.zeros((0, encoder.feature_dim), np.float32)
        ),
        scores=np.concatenate(scores) if scores else no_scores,
        labels=source.labels[positions],
        label_matrix=None if source.label_matrix is None else source.label_matrix[positions],
        uris=tuple(source.uris[position] for position in positions),
        positions=positions,
        skipped=tuple(image for batch in batches for image in batch.skipped),
    )


def _joined(arrays: list[NDArray[_T]], empty: NDArray[_T]) -> NDArray[_T]:
    return np.concatenate(arrays) if arrays else empty
