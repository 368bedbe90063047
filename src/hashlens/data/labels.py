"""Labels: reading them from a column, checking them, and how evenly they are spread."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError, few_of
from hashlens.files import compared


class Labels(NamedTuple):
    """Labels of n rows: positions in ``classes``, -1 where unlabelled, of several the first.

    A column of lists also gives ``matrix`` (n, c), bool.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    matrix: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def none(cls, rows: int, *notes: str) -> Labels:
        """No labels at all."""
        return cls((), np.full(rows, -1, np.int64), None, notes)


def labels_from_values(
    values: Sequence[Any], where: str, names: Sequence[Any] | None = None
) -> Labels:
    """Read labels: whole numbers, words, yes or no, or lists of these; None is unlabelled.

    ``names`` are those of the classes, where a table has them.
    """
    words = tuple(compared(str(name)) for name in names or ()) or None
    if words is not None and len(set(words)) != len(words):
        raise SourceError(f"{where}: class names repeat; expected each name once")
    if not any(isinstance(value, list | tuple) for value in values):
        return _flat_labels(values, words, where)
    several = [value if isinstance(value, list | tuple) else [value] for value in values]
    flat = _flat_labels([one for each in several for one in each or ()], words, where)
    rows = np.repeat(np.arange(len(several)), [len(each or ()) for each in several])
    return _multi_label(flat, rows.astype(np.int64), len(several))


def _flat_labels(values: Sequence[Any], names: tuple[str, ...] | None, where: str) -> Labels:
    plain = [_plain_label(value) for value in values]
    kinds = {type(value) for value in plain} - {type(None)}
    if not kinds:
        return Labels.none(len(plain), f"{where} is empty")
    if kinds == {int}:
        if max(value for value in plain if value is not None) > np.iinfo(np.int64).max:
            raise SourceError(f"{where}: numbers over 2**63 cannot be labels")
        numbers = np.array([-1 if value is None else value for value in plain], np.int64)
        return _integer_labels(numbers, names, where)
    if kinds != {str}:
        odd = [next(v for v in plain if type(v) is kind) for kind in kinds if kind is not str]
        raise SourceError(
            f"{where}: expected whole numbers, words, or lists of either, got "
            f"{odd[0]!r:.80} of type {type(odd[0]).__name__}; convert the column"
        )
    present = tuple(sorted(set(plain) - {None}))
    positions = {word: i for i, word in enumerate(names or present)}
    unknown = sorted(set(present) - set(positions))
    if unknown:
        raise SourceError(f"{where}: {unknown[0]!r} is not among the {len(positions)} class names")
    found = np.array([positions.get(word, -1) for word in plain], dtype=np.int64)
    return Labels(tuple(positions), found)


def _plain_label(value: Any) -> Any:
    """A label as a whole number or a word; None where there is none."""
    if hasattr(value, "item"):  # a scalar of NumPy
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return sys.intern(str(compared(value))) or None  # one object for all rows
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return None if math.isnan(value) else int(value)  # where some of a column are missing
    return value


def _integer_labels(values: NDArray[np.int64], names: tuple[str, ...] | None, where: str) -> Labels:
    if values.size and values.min() < -1:
        row = int(np.argmin(values))
        raise SourceError(f"{where}: expected -1 (unlabelled) or more, got {values[row]} in {row}")
    if names is None:
        present = np.unique(values[values >= 0])
        labels = np.where(values < 0, -1, np.searchsorted(present, values))
        return Labels(tuple(str(value) for value in present.tolist()), labels.astype(np.int64))
    if values.size and values.max() >= len(names):
        row = int(np.argmax(values))
        raise SourceError(
            f"{where}: label {values[row]} (value {row}) has no name; the file names "
            f"{len(names)} classes"
        )
    return Labels(names, values)


def _multi_label(flat: Labels, rows: NDArray[np.int64], count: int) -> Labels:
    matrix = np.zeros((count, len(flat.classes)), bool)
    known = flat.labels >= 0
    matrix[rows[known], flat.labels[known]] = True
    first = np.full(count, -1, np.int64)
    # Written from the last to the first, so that the first label of a row stays.
    first[rows[known][::-1]] = flat.labels[known][::-1]
    return Labels(flat.classes, first, matrix)


def class_names(schema: Any, column: str) -> list[Any] | None:
    """Names of a ClassLabel, or of lists of them, in the metadata of an Arrow schema."""
    try:
        metadata = json.loads(schema.metadata[b"huggingface"])
        feature = metadata["info"]["features"].get(column)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return names if isinstance(names, list) else None


def require_labels(source: Source, *, images: int = 2) -> None:
    """Refuse a source that no classifier can be trained on."""
    counts = class_counts(source)
    if not counts.any():
        note = f" ({source.notes[0]})" if source.notes else ""
        raise SourceError(
            f"{source.spec}: this needs labels, and none of the {len(source)} images has "
            f"one{note}; put each class into a sub-folder of its own, or train with --unsupervised"
        )
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise SourceError(
            f"{source.spec}: this needs at least 2 classes, got {len(present)} "
            f"('{source.classes[present[0]]}'); add images of another class, or train with "
            "--unsupervised"
        )
    few = [i for i in present if counts[i] < images]
    if few:
        shown = few_of(f"'{source.classes[i]}' ({counts[i]})" for i in few)
        raise SourceError(
            f"{source.spec}: each class needs at least {images} images, too few in: {shown}; add "
            "images, or take the class out"
        )


def without_labels(source: Source) -> Source:
    """The same images or vectors, of which nothing is known."""
    return replace(source, classes=(), labels=Labels.none(len(source)).labels, label_matrix=None)


def rows_to_learn(source: Source) -> Rows:
    """Positions that are learned from: those with a label, or all of a source without classes."""
    return source.labelled if source.classes else np.arange(len(source))


def without_lost_classes(source: Source, rows: Rows) -> tuple[Source, tuple[str, ...]]:
    """The source without classes that have images, but none among ``rows``; and their names."""
    before, left = class_counts(source), class_counts(source.subset(rows))
    kept = np.flatnonzero((left > 0) | (before == 0))
    lost = tuple(source.classes[i] for i in np.flatnonzero((left == 0) & (before > 0)))
    if not lost:
        return source, ()
    places = np.full(len(source.classes) + 1, -1, np.int64)  # the last is that of no label
    places[kept] = np.arange(len(kept))
    matrix = source.label_matrix
    found = replace(
        source,
        classes=tuple(source.classes[i] for i in kept),
        labels=places[source.labels],
        label_matrix=None if matrix is None else matrix[:, kept],
    )
    return found, lost


def class_counts(source: Source) -> NDArray[np.int64]:
    """Images of each class, shape (c,); an image of several classes counts in each."""
    if source.label_matrix is not None:
        return np.asarray(source.label_matrix.sum(axis=0), np.int64)
    known = source.labels[source.labels >= 0]
    return np.bincount(known, minlength=len(source.classes)).astype(np.int64)


class Imbalance(NamedTuple):
    """How unevenly images are spread over classes; empty classes do not count.

    ``ratio`` is images of the largest for each image of the smallest. ``effective_classes`` is
    exp(entropy) of the class shares: as many even classes would be as varied.
    """

    smallest: str
    largest: str
    ratio: float
    effective_classes: float


def imbalance(source: Source) -> Imbalance:
    """Measure class imbalance."""
    counts = class_counts(source)
    present = np.flatnonzero(counts)
    if not len(present):
        raise SourceError(f"{source.spec}: no image has a label, so there is nothing to balance")
    smallest, largest = present[counts[present].argmin()], present[counts[present].argmax()]
    shares = counts[present] / counts.sum()
    return Imbalance(
        source.classes[smallest],
        source.classes[largest],
        float(counts[largest] / counts[smallest]),
        float(np.exp(-(shares * np.log(shares)).sum())),
    )


def balanced_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Weights for drawing rows so that each class comes up equally often."""
    values = np.asarray(labels)
    weights = np.zeros(len(values) if values.ndim else 0)
    if values.ndim == 2 and values.dtype == np.bool_:
        counts = values.sum(axis=0)
        rarity = np.where(values, 1 / np.maximum(counts, 1), 0.0)
        weights = rarity.max(axis=1, initial=0.0)
    elif values.ndim == 1 and (values.dtype.kind in "iu" or not values.size):
        known = values >= 0
        counts = np.bincount(values[known].astype(np.int64))
        weights[known] = 1 / counts[values[known]]
    else:
        raise InvalidInputError(
            "labels: expected whole numbers of shape (n,) or bool of shape (n, c), got "
            f"{values.dtype} of {values.shape}"
        )
    total = weights.sum()
    return weights / total if total else weights


Rows = NDArray[np.int64]


def split_validation(labels: ArrayLike, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Cut a validation set off labelled rows, with the same share of each class.

    Every class keeps at least one row for training, so that none is seen in validation only.
    Which rows are taken depends on labels, fraction and seed alone.
    """
    values = np.asarray(labels)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise InvalidInputError(
            f"labels: expected whole numbers of shape (n,), got {values.dtype} of {values.shape}"
        )
    if not 0 <= fraction < 1:
        raise InvalidInputError(f"fraction: expected from 0 to below 1, got {fraction}")
    rng = np.random.default_rng(seed)
    present, counts = np.unique(values[values >= 0], return_counts=True)
    held_out = _shares(counts, fraction, rng)
    validation = [
        rng.permutation(np.flatnonzero(values == label))[:count]
        for label, count in zip(present, held_out, strict=True)
    ]
    chosen = np.zeros(len(values), bool)
    chosen[np.concatenate(validation) if validation else []] = True
    return np.flatnonzero(~chosen & (values >= 0)), np.flatnonzero(chosen)


def _shares(counts: Rows, fraction: float, rng: np.random.Generator) -> Rows:
    """Rows held out of each class: largest remainders, so that the total is right."""
    exact = counts * fraction
    shares: Rows = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    tie_break = rng.random(len(counts))
    order = np.lexsort((tie_break, -(exact - shares)))
    shares[order[:missing]] += 1
    return np.asarray(np.minimum(shares, counts - 1), np.int64)
