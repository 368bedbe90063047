"""Before a run: which images train, and which validate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.labels import split_validation
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.training.config import TrainingConfig
from hashlens.training.data import Inputs


class Split(NamedTuple):
    """Rows of the inputs.

    Attributes
    ----------
    training, validation : ndarray of int64
        No row is in both, and no validation image is known to be an exact copy of a training
        image.
    copies : int
        Images that left validation because they were such copies.
    """

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    copies: int


def split_rows(
    labels: NDArray[np.int64], twins: NDArray[np.int64], config: TrainingConfig
) -> Split:
    """Cut off the validation images."""
    assert config.validation is not None  # a resolved configuration names a share
    training, validation = split_validation(labels, config.validation, config.seed)
    copies = (twins[validation] >= 0) & np.isin(twins[validation], twins[training])
    validation = validation[~copies]
    if len(training) < 2 or len(validation) < 2:
        raise SourceError(
            f"expected at least 2 different images for validation, got {len(validation)} of "
            f"{len(labels)}: add images, or raise the share held out (validation, now "
            f"{config.validation:g})"
        )
    return Split(training, validation, int(copies.sum()))


def split_notes(source: Source, inputs: Inputs, split: Split) -> list[str]:
    """Say what a person should know about the images that are used, and those that are not."""
    notes = list(source.notes)
    unlabelled = len(source) - len(source.labelled)
    if unlabelled:
        notes.append(f"{unlabelled} of {len(source)} images have no label and are left out")
    if inputs.skipped:
        notes.append(f"{len(inputs.skipped)} images could not be read and are left out")
    if split.copies:
        notes.append(
            f"{split.copies} validation images are exact copies of training images: they are left "
            "out of validation, where they would flatter the model"
        )
    return notes
