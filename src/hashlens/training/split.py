"""Before a run: what the images are like, and which of them validate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.labels import require_labels, split_validation
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.training.config import TrainingConfig
from hashlens.training.data import Inputs
from hashlens.training.recipes import ImageFacts, hardware

_PROBES = 24


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


def image_facts(source: Source) -> ImageFacts:
    """Measure what the choice of a recipe depends on, from a few images."""
    require_labels(source)
    rows = source.labelled
    probes = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBES)).astype(int)]
    sides, grey, failed = [], True, ""
    for row in probes.tolist():
        try:
            image = source.load(row)
        except SourceError as error:
            failed = str(error)
            continue
        sides.append(max(image.size))
        grey = grey and image.mode == "L"
    if not sides:
        raise SourceError(
            f"{source.spec}: none of {len(probes)} images tried can be read: {failed}"
        )
    cuda, bf16 = hardware()
    return ImageFacts(len(rows), int(np.median(sides)), 1 if grey else 3, cuda, bf16)


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
