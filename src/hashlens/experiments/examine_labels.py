"""Examines the labels of a source: which are likely wrong, and which classes are mixed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.data.labels import Imbalance, imbalance, require_labels
from hashlens.data.leakage import content_hashes, same_content
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.evaluation.label_noise import (
    ConfusedPair,
    Suspicion,
    code_neighbours,
    confused_pairs,
    feature_neighbours,
    leave_one_out_scores,
    suspicion,
)
from hashlens.experiments.score_model import encode
from hashlens.models.encoder import Encoder
from hashlens.protocols import Ids, Skipped

NEIGHBOURS = 10


@dataclass(frozen=True)
class LabelReport:
    """What was found about n labelled images.

    Attributes
    ----------
    spec : str
        The source.
    classes : tuple of str
        Class names.
    uris : tuple of str
        The images.
    labels : ndarray of shape (n,), int64
        Their labels.
    found : Suspicion
        How doubtful each is.
    pairs : list of ConfusedPair
        Classes that are mixed up, most images first.
    neighbours : ndarray of shape (n, k), int64
        The nearest other images by features.
    agreement, code_agreement : ndarray of shape (n,), float64
        Share of the nearest other images, by features and by codes, with the image's own label.
    conflicts : list of lists of int
        Groups of identical files whose labels differ.
    balance : Imbalance
        How even the classes are.
    unlabelled : int
        Images without a label, not looked at.
    skipped : tuple of Skipped
        Images that could not be read.
    warnings : tuple of str
        What a person should know.
    """

    spec: str
    classes: tuple[str, ...]
    uris: tuple[str, ...]
    labels: NDArray[np.int64]
    found: Suspicion
    pairs: list[ConfusedPair]
    neighbours: Ids
    agreement: NDArray[np.float64]
    code_agreement: NDArray[np.float64]
    conflicts: list[list[int]]
    balance: Imbalance
    unlabelled: int
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    @property
    def likely_wrong(self) -> int:
        """Images whose label is likely wrong."""
        return int(self.found.likely_wrong.sum())

    def image(self, row: int) -> dict[str, Any]:
        """What is known of one image, as JSON takes it."""
        return {
            "image": self.uris[row],
            "label": self.classes[int(self.labels[row])],
            "looks_like": self.classes[int(self.found.looks_like[row])],
            "likely_wrong": bool(self.found.likely_wrong[row]),
            "doubt": round(float(self.found.scores[row]), 4),
            "neighbours_agree": round(float(self.agreement[row]), 4),
            "codes_agree": round(float(self.code_agreement[row]), 4),
        }

    def to_dict(self, first: int) -> dict[str, Any]:
        """One JSON object, with the ``first`` most doubtful images."""
        return {
            "source": self.spec,
            "images": len(self.labels),
            "unlabelled": self.unlabelled,
            "classes": list(self.classes),
            "imbalance": self.balance._asdict(),
            "likely_wrong": self.likely_wrong,
            "confused": [self._pair(pair) for pair in self.pairs],
            "first": [self.image(row) for row in self.found.order[:first].tolist()],
            "conflicts": [[self.image(row) for row in group] for group in self.conflicts],
            "skipped": [{"image": one.name, "reason": one.reason} for one in self.skipped],
            "warnings": list(self.warnings),
        }

    def _pair(self, pair: ConfusedPair) -> dict[str, Any]:
        return {
            "label": self.classes[pair.label],
            "looks_like": self.classes[pair.looks_like],
            "images": pair.images,
            "share": round(pair.share, 4),
        }


def examine_labels(
    encoder: Encoder, source: Source, *, strict: bool = False, progress: bool = False
) -> LabelReport:
    """Encode a source and rank its labels by how doubtful they are.

    Parameters
    ----------
    encoder : Encoder
        The model; its features are used, not its classifier, which may have learned wrong labels
        by heart.
    source : Source
        Images of one label each; those without are left out.
    strict : bool
        Raise on an unreadable image instead of skipping it.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SourceError
        If the source has no labels, several for an image, or a class of one image.
    ImageError
        If strict and an image cannot be read.
    """
    if source.is_multi_label:
        raise SourceError(
            f"{source.spec}: its images have several labels each; expected one label an image"
        )
    require_labels(source)
    unlabelled = len(source) - len(source.labelled)
    labelled = source.subset(source.labelled)
    encoded = encode(encoder, labelled, strict=strict, progress=progress)
    readable = labelled.subset(encoded.positions)
    require_labels(readable)
    labels = encoded.labels
    scores = leave_one_out_scores(encoded.features, labels, len(source.classes))
    found = suspicion(scores, labels)
    nearest = feature_neighbours(encoded.features, NEIGHBOURS)
    by_code = code_neighbours(encoded.codes, NEIGHBOURS)
    groups = same_content(content_hashes(readable))
    return LabelReport(
        source.spec,
        source.classes,
        encoded.uris,
        labels,
        found,
        confused_pairs(found, labels),
        nearest,
        _agreement(nearest, labels),
        _agreement(by_code, labels),
        [group for group in groups if len(set(labels[group].tolist())) > 1],
        imbalance(readable),
        unlabelled,
        encoded.skipped,
        (*source.notes, *_warnings(encoder, source)),
    )


def _agreement(neighbours: Ids, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray((labels[neighbours] == labels[:, None]).mean(axis=1), np.float64)


def _warnings(encoder: Encoder, source: Source) -> tuple[str, ...]:
    training = encoder.config.training
    configuration = training.get("configuration", {})
    learned = configuration.get("freeze_backbone") is False or configuration.get("feature_layer")
    if training.get("source") != source.spec or not learned:
        return ()
    return (
        "the model's features were trained on these labels and may have learned wrong ones by "
        "heart: expect more to be found with a model made with hashlens train --unsupervised",
    )
