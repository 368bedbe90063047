"""Labels: reading them from a column, checking them, and how evenly they are spread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, MissingExtraError, SourceError
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


def labels_from_arrow(column: Any, metadata: bytes | None, where: str) -> Labels:
    """Read a label column."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ImportError as error:
        raise MissingExtraError("reading label columns", "train") from error
    kind = column.type
    if isinstance(kind, pa.DictionaryType):
        column, kind = column.cast(kind.value_type), kind.value_type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list or pa.types.is_fixed_size_list(kind):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
        rows = np.repeat(np.arange(len(column)), lengths)
        flat = _flat_labels(pc.list_flatten(column), _class_names(metadata, where), where)
        return _multi_label(flat, rows, len(column))
    return _flat_labels(column, _class_names(metadata, where), where)


def _flat_labels(column: Any, names: tuple[str, ...] | None, where: str) -> Labels:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(kind, pa.DictionaryType):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_integer(kind):
        if pa.types.is_uint64(kind) and (pc.max(column).as_py() or 0) > np.iinfo(np.int64).max:
            raise SourceError(f"{where}: numbers over 2**63 cannot be labels")
        filled = pc.fill_null(column.cast(pa.int64()), -1)
        return _integer_labels(np.asarray(filled).astype(np.int64), names, where)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        if pa.types.is_null(kind):
            return Labels.none(len(column), f"{where} is empty")
        raise SourceError(
            f"{where}: expected whole numbers, words, or lists of either, got {kind}; "
            "convert the column"
        )
    words = np.array([compared(word or "") for word in column.to_pylist()], dtype=object)
    present = tuple(sorted(set(words.tolist()) - {""}))
    positions = {word: i for i, word in enumerate(names or present)}
    unknown = sorted(set(present) - set(positions))
    if unknown:
        raise SourceError(f"{where}: {unknown[0]!r} is not among the {len(positions)} class names")
    values = np.array([positions.get(word, -1) for word in words], dtype=np.int64)
    return Labels(tuple(positions), values)


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


def _class_names(metadata: bytes | None, where: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel, or of lists of them, in the schema's JSON."""
    if metadata is None:
        return None
    try:
        feature = json.loads(metadata)["info"]["features"].get("label")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, Mapping) else None
    if not isinstance(names, list) or not names:
        return None
    words = tuple(compared(str(name)) for name in names)
    if len(set(words)) != len(words):
        raise SourceError(f"{where}: class names repeat; expected each name once")
    return words


def require_labels(source: Source, *, classes: int = 2, images: int = 2) -> None:
    """Refuse a source that no classifier can be trained on."""
    counts = class_counts(source)
    if not counts.any():
        note = f" ({source.notes[0]})" if source.notes else ""
        raise SourceError(
            f"{source.spec}: this needs labels, and none of the {len(source)} images has "
            f"one{note}; put each class into a sub-folder of its own, or train with --unsupervised"
        )
    present = np.flatnonzero(counts)
    if len(present) < classes:
        raise SourceError(
            f"{source.spec}: this needs at least {classes} classes, got {len(present)} "
            f"('{source.classes[present[0]]}'); add images of another class, or train with "
            "--unsupervised"
        )
    few = [i for i in present if counts[i] < images]
    if few:
        shown = ", ".join(f"'{source.classes[i]}' ({counts[i]})" for i in few[:5])
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise SourceError(
            f"{source.spec}: each class needs at least {images} images, too few in: {shown}{more}; "
            "add images, or take the class out"
        )


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
