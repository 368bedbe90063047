"""``hashlens labels``: rank labels by how doubtful they are; a page, a sheet, a list of all.

No image's label counts for the image itself: the linear classifier that scores it leaves it out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.image import MAX_FILE_BYTES
from hashlens.data.labels import imbalance, require_labels
from hashlens.data.remote import read_remote
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError
from hashlens.files import Uri, content_digest, replace_file
from hashlens.index.ranking import ArraySearcher
from hashlens.models.encoder import Encoder
from hashlens.report.page import Cell, Page, Table
from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet
from hashlens.types import Codes, Features, Ids, Mode, SearchOptions, Skipped
from hashlens.workflows.score import encode, load_small

ClassScores = NDArray[np.float64]

_PENALTIES = 10.0 ** np.arange(-4, 3)  # tried, as multiples of the mean variance of a direction
_LEAST_FREEDOM = 1e-6  # 1 - leverage of an image that the fit passes through
_LEAST_VARIANCE = 1e-12  # for features that are all alike
# Chosen on training images with labels changed (benchmarks/label_noise.py): of few images, whose
# scores vary, a plain majority calls a third of right labels wrong, and this a tenth.
_CLEARLY = 3.0


class ConfusedPair(NamedTuple):
    """Images labelled one class that look like another."""

    label: int
    looks_like: int
    images: int  # images with this label that look most like the other class
    share: float  # their share of all images with this label


class Suspicion(NamedTuple):
    """How doubtful each label is."""

    # (n,): higher is more doubtful; above 0, another class fits better than the label
    scores: NDArray[np.float64]
    looks_like: NDArray[np.int64]  # (n,): the other class that fits best
    # (n,): that class scores three times as high as the label, and fits this image at least as
    # well as its own images on average
    likely_wrong: NDArray[np.bool_]
    order: Ids  # (n,): images, the most doubtful first; ties by position


def leave_one_out_scores(features: Features, labels: Any, classes: int) -> ClassScores:
    """How much each image looks like each class, by a classifier fitted without that image.

    Ridge regression of features onto one column per class, 1 for the image's own. For each image
    the answer of the fit to all others follows in closed form from the fit to all: with fitted
    value f, target y and leverage h it is y - (y - f) / (1 - h) (Allen 1974, PRESS). The penalty
    with the least squared error of these answers is taken.
    """
    values = _checked_labels(labels, classes)
    if features.ndim != 2 or len(features) != len(values) or len(values) < 2:
        raise InvalidInputError(
            f"features: expected ({len(values)}, d) for at least 2 labels, got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise InvalidInputError("features: expected finite numbers, got NaN or infinity")
    targets = np.eye(classes)[values]
    shares = targets.mean(axis=0)
    targets -= shares
    rotated = features.astype(np.float64)
    rotated -= rotated.mean(axis=0)
    variances, directions = np.linalg.eigh(rotated.T @ rotated)
    rotated = rotated @ directions
    scale = max(float(variances.mean()), _LEAST_VARIANCE)
    weights = 1 / (np.maximum(variances, 0)[:, None] + scale * _PENALTIES)  # (d, penalties)
    products = rotated.T @ targets
    fits = [rotated @ (column[:, None] * products) for column in weights.T]
    leverages = 1 / len(values) + np.square(rotated, out=rotated) @ weights
    best, least = targets, np.inf
    for fitted, leverage in zip(fits, leverages.T, strict=True):
        errors = (targets - fitted) / np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
        loss = float(np.square(errors).sum())
        if loss < least:
            best, least = targets - errors, loss
    return np.asarray(best + shares, np.float64)


def suspicion(scores: ClassScores, labels: Any) -> Suspicion:
    """Rank labels by how much better another class fits.

    A class's scores are first measured against what its own images reach on average, so that
    images of rare or varied classes are not suspect for that alone (after Northcutt, Jiang and
    Chuang, "Confident learning", 2021, whose class thresholds these averages are).
    """
    values = _checked_labels(labels, scores.shape[1] if scores.ndim == 2 else 0)
    if len(values) != len(scores) or scores.shape[1] < 2:
        raise InvalidInputError(
            f"scores: expected ({len(values)}, 2 or more classes), got {scores.shape}"
        )
    rows = np.arange(len(values))
    own = scores[rows, values]
    counts = np.bincount(values, minlength=scores.shape[1])
    sums = np.bincount(values, weights=own, minlength=scores.shape[1])
    present = counts > 0
    usual = np.where(present, sums / np.maximum(counts, 1), np.inf)
    fit = scores - usual
    others = np.where(np.arange(scores.shape[1]) == values[:, None], -np.inf, fit)
    looks_like = others.argmax(axis=1)
    best = others[rows, looks_like]
    doubt = best - fit[rows, values]
    likely_wrong = (doubt > 0) & (best >= 0) & (_CLEARLY * own < scores[rows, looks_like])
    order = np.argsort(-doubt, kind="stable")
    return Suspicion(doubt, looks_like.astype(np.int64), likely_wrong, order)


def confused_pairs(found: Suspicion, labels: Any) -> list[ConfusedPair]:
    """Pairs of classes by how many images of the one are likely of the other, most first."""
    values = np.asarray(labels)
    totals = np.bincount(values)
    wrong = found.likely_wrong
    pairs, counts = np.unique(
        np.stack([values[wrong], found.looks_like[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.lexsort((*pairs.T[::-1], -counts))
    return [
        ConfusedPair(label, other, count, float(count / totals[label]))
        for (label, other), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _checked_labels(labels: Any, classes: int) -> NDArray[np.int64]:
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
        raise InvalidInputError(
            f"labels: expected at least one whole number, got {values.dtype} of {values.shape}"
        )
    if values.min() < 0 or values.max() >= classes:
        raise InvalidInputError(
            f"labels: expected 0 to {classes - 1}, got {values.min()} to {values.max()}; "
            "leave unlabelled images out"
        )
    return values.astype(np.int64)


NEIGHBOURS = 10


@dataclass(frozen=True)
class ExaminedLabels:
    """What was found about n labelled images.

    ``images`` are those that have a label and could be read, ``pairs`` the classes that are mixed
    up, most images first; ``neighbours`` (n, k) the nearest other images by features;
    ``agreement`` and ``code_agreement`` (n,) the share of the nearest, by features and by codes,
    that have the image's own label; ``conflicts`` groups of identical files whose labels differ.
    ``unlabelled`` images are left out, ``skipped`` could not be read.
    """

    images: Source
    found: Suspicion
    pairs: list[ConfusedPair]
    neighbours: Ids
    agreement: NDArray[np.float64]
    code_agreement: NDArray[np.float64]
    conflicts: list[list[int]]
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
            "image": self.images.uris[row],
            "label": self.images.label_name(row),
            "looks_like": self.images.classes[int(self.found.looks_like[row])],
            "likely_wrong": bool(self.found.likely_wrong[row]),
            "doubt": round(float(self.found.scores[row]), 4),
            "neighbours_agree": round(float(self.agreement[row]), 4),
            "codes_agree": round(float(self.code_agreement[row]), 4),
        }

    def to_dict(self, first: int) -> dict[str, Any]:
        """One JSON object, with the ``first`` most doubtful images."""
        return {
            "source": self.images.spec,
            "images": len(self.images),
            "unlabelled": self.unlabelled,
            "classes": list(self.images.classes),
            "imbalance": imbalance(self.images)._asdict(),
            "likely_wrong": self.likely_wrong,
            "confused": [
                {
                    "label": self.images.classes[pair.label],
                    "looks_like": self.images.classes[pair.looks_like],
                    "images": pair.images,
                    "share": round(pair.share, 4),
                }
                for pair in self.pairs
            ],
            "first": [self.image(row) for row in self.found.order[:first].tolist()],
            "conflicts": [[self.image(row) for row in group] for group in self.conflicts],
            "skipped": [{"image": one.name, "reason": one.reason} for one in self.skipped],
            "warnings": list(self.warnings),
        }


def examine_labels(
    encoder: Encoder, source: Source, *, strict: bool = False, progress: bool = False
) -> ExaminedLabels:
    """Encode a source and rank its labels by how doubtful they are."""
    if source.is_multi_label:
        raise SourceError(
            f"{source.spec}: its images have several labels each; expected one label per image"
        )
    require_labels(source)
    labelled = source.subset(source.labelled)
    encoded = encode(encoder, labelled, strict=strict, progress=progress)
    readable = labelled.subset(encoded.positions)
    require_labels(readable)
    labels = readable.labels
    scores = leave_one_out_scores(encoded.features, labels, len(source.classes))
    found = suspicion(scores, labels)
    nearest, by_code = nearest_others(encoded.features, encoded.codes, NEIGHBOURS)
    return ExaminedLabels(
        readable,
        found,
        confused_pairs(found, labels),
        nearest,
        _agreement(nearest, labels),
        _agreement(by_code, labels),
        [group for group in same_files(readable) if len(set(labels[group].tolist())) > 1],
        len(source) - len(source.labelled),
        encoded.skipped,
        (*source.notes, *_warnings(encoder, source), *_few(labels, source.classes)),
    )


def nearest_others(features: Features, codes: Codes, k: int) -> tuple[Ids, Ids]:
    """The k nearest other images of each by the angle of features, and by codes; ties by position.

    Features of zeros stay as they are, and are compared by distance.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    searcher, own = ArraySearcher(codes, directions), np.arange(len(codes))

    def nearest(mode: Mode) -> Ids:
        options = SearchOptions(min(k, len(codes) - 1), mode=mode, exclude=own)
        return searcher.search_encoded(codes, directions, options).ids

    return nearest("es"), nearest("bcs")


def same_files(source: Source) -> list[list[int]]:
    """Groups of two or more positions whose files have equal content, in order of their first."""
    groups: dict[bytes, list[int]] = {}
    for position, row in enumerate(source.rows.tolist()):
        try:
            raw = source.store.read(row)
            raw = read_remote(raw, MAX_FILE_BYTES) if isinstance(raw, Uri) else raw
            content = raw.read_bytes() if isinstance(raw, Path) else raw
        except (OSError, SourceError):
            continue
        data = content if isinstance(content, bytes) else content.tobytes()
        groups.setdefault(content_digest(data), []).append(position)
    return [group for group in groups.values() if len(group) > 1]


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
        "heart: a model made with hashlens train --unsupervised will find more",
    )


def _few(labels: NDArray[np.int64], classes: Sequence[str]) -> Iterator[str]:
    counts = np.bincount(labels, minlength=len(classes))
    few = np.flatnonzero((counts > 0) & (counts < _FEW))
    if len(few):
        yield (
            f"{len(few)} of {len(classes)} classes have fewer than {_FEW} images, such as "
            f"{classes[few[0]]} ({counts[few[0]]}): which of their labels are wrong is a guess; "
            "the order of doubt is what helps"
        )


_FEW = 30
_DRAWN, _DRAWN_NEIGHBOURS, _PAIRS = 24, 6, 10

_METHOD = (
    "A label is doubtful if another class fits the image's features better than the label does. "
    "The fit is measured by a linear classifier of all other images (ridge regression, each image "
    "left out in turn), relative to how well the images of each class fit on average. A label is "
    "likely wrong if the other class scores three times as high, and fits the image as well as "
    "that class's own images on average. Not all of these labels are wrong: right labels look "
    "wrong too among unusual images, and where the features cannot tell two classes apart."
)


def summary(report: ExaminedLabels) -> str:
    """Lines for a terminal: counts, and the pairs of classes that are mixed up most."""
    images, wrong = report.images, report.likely_wrong
    lines = [
        f"{images.spec}: {len(images):,} labelled images of {len(images.classes)} classes; "
        f"{wrong:,} labels ({100 * wrong / len(images):.1f} %) are likely wrong"
    ]
    if report.conflicts:
        lines.append(f"{len(report.conflicts)} groups of identical files with different labels")
    if report.pairs:
        lines.append(_pair_table(report, 5).text())
    return "\n".join(lines)


def _pair_table(report: ExaminedLabels, count: int) -> Table:
    classes = report.images.classes
    rows: list[list[Cell]] = []
    for pair in report.pairs[:count]:
        names = f"{classes[pair.label]} → {classes[pair.looks_like]}"
        rows.append([names, pair.images, f"{100 * pair.share:.1f} %"])
    return Table(["label → looks like", "images", "of the label"], rows)


def write_label_page(report: ExaminedLabels, out: Path) -> Path:
    """Write labels.html, labels.md, labels.png, doubtful.csv (all images) and labels.json."""
    page = Page(out, "Labels in doubt", f"{summary(report).splitlines()[0]}.")
    page.write_json(report.to_dict(len(report.images)), "labels")
    rows = [report.image(row) for row in report.found.order.tolist()]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(out / "doubtful.csv", table.getvalue())
    for warning in report.warnings:
        page.paragraph(f"Note: {warning}.")
    page.paragraph(_METHOD)
    balance = imbalance(report.images)
    page.paragraph(
        f"For each image of the smallest class ({balance.smallest}) there are {balance.ratio:.1f} "
        f"of the largest ({balance.largest}). Images without a label: {report.unlabelled:,}; "
        f"images that could not be read: {len(report.skipped):,}."
    )
    if report.pairs:
        page.heading("Classes that are mixed up")
        page.table(_pair_table(report, _PAIRS))
    if report.conflicts:
        page.heading("Identical files with different labels")
        rows_of_files = [
            [report.images.uris[row], f"group {number}", report.images.label_name(row)]
            for number, group in enumerate(report.conflicts[:50], 1)
            for row in group
        ]
        page.table(Table(["file", "", "label"], rows_of_files))
    page.heading("The most doubtful images")
    page.picture(
        picture_sheet(_sheet(report), load_small),
        "labels",
        "Doubtful images with their nearest pictures",
        f"The {min(_DRAWN, len(report.images))} most doubtful images, each with its nearest other "
        "images by features. Blue frame and tick: the same label; orange frame and cross: "
        "another. All images are in doubtful.csv, the most doubtful first.",
    )
    return page.write("labels")


def _sheet(report: ExaminedLabels) -> list[SheetQuery]:
    queries, uris = [], report.images.uris
    for row in report.found.order[:_DRAWN].tolist():
        shown = report.image(row)
        others = report.neighbours[row, :_DRAWN_NEIGHBOURS].tolist()
        names = [report.images.label_name(near) or "" for near in others]
        nearest = [
            Neighbour(uris[near], name, right=name == shown["label"])
            for near, name in zip(others, names, strict=True)
        ]
        likeness = {f"like {shown['looks_like']}": nearest}
        queries.append(SheetQuery(shown["image"], shown["label"], likeness))
    return queries
