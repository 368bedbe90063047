"""``hashlens inspect``: how good a model's codes are, a radius for HDS, and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, unpack_bits
from hashlens.data.labels import class_counts, split_validation
from hashlens.data.opening import open_source
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError, few_of
from hashlens.evaluation.metrics import (
    LabelArray,
    Scores,
    check_labels,
    counts_by_distance,
    precision_within_radius,
)
from hashlens.models.encoder import Encoder
from hashlens.report.page import Cell, Page, Table
from hashlens.report.plot import Curve, plot_curves, plot_matrix, plot_steps
from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet
from hashlens.types import Codes, EncodedImages
from hashlens.workflows.score import encode, load_small

STUCK_SHARE = 0.005
TWIN_CORRELATION = 0.95
_CODES_SHOWN, _IMAGES_SHOWN = 5, 8


class Occupancy(NamedTuple):
    """How images share codes."""

    distinct: int  # different codes
    alone: int  # images whose code no other image has
    largest: int  # images of the most frequent code
    # entropy in bits of the distribution of images over codes; at most log2 of the images
    entropy: float


@dataclass(frozen=True)
class RadiusCurve:
    """What a search within each Hamming radius 0, 1, ..., bits would find, over all queries."""

    within: NDArray[np.int64]  # (bits + 1,): pairs at each distance, of one class and of two
    between: NDArray[np.int64]
    # (bits + 1,): mean share of relevant images within the radius; 0 for a query that finds nothing
    precision: Scores
    # (bits + 1,): mean share of a query's relevant images that are within the radius
    recall: Scores
    pool: Scores  # (bits + 1,): mean share of all other images that are within the radius
    empty: Scores  # (bits + 1,): share of queries with nothing within the radius
    queries: int  # images used as queries

    @property
    def best(self) -> int:
        """Radius of the highest harmonic mean of precision and recall; the smallest if tied."""
        both = self.precision + self.recall
        return int(np.argmax(2 * self.precision * self.recall / np.where(both > 0, both, 1.0)))


@dataclass(frozen=True)
class Inspection:
    """Statistics of n codes."""

    images: int
    bits: int
    ones: Scores  # (bits,): share of images in which each bit is 1
    entropy: Scores  # (bits,): of each bit, 0 to 1
    # (bits, bits): Pearson correlation of bits; 0 with a bit that never changes, 1 on the diagonal
    correlation: Scores
    occupancy: Occupancy  # how images share codes
    radii: RadiusCurve | None  # None where fewer than two images of one class are labelled

    @property
    def stuck(self) -> list[int]:
        """Bits that take one value in all but 0.5 % of the images."""
        share = np.minimum(self.ones, 1 - self.ones)
        return [int(bit) for bit in np.flatnonzero(share < STUCK_SHARE)]

    @property
    def twins(self) -> list[tuple[int, int]]:
        """Pairs of bits that say the same, or the opposite (correlation of 0.95 or more)."""
        upper = np.triu(np.abs(self.correlation), k=1)
        return [(int(a), int(b)) for a, b in np.argwhere(upper >= TWIN_CORRELATION)]

    @property
    def mean_correlation(self) -> float:
        """Mean absolute correlation between two bits."""
        pairs = np.abs(self.correlation)[np.triu_indices(self.bits, k=1)]
        return float(pairs.mean()) if len(pairs) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Keys as ``inspect --json`` prints them."""
        radii, curves = self.radii, {}
        if radii is not None:
            names = ("within", "between", "precision", "recall", "pool", "empty")
            curves = {name: getattr(radii, name).tolist() for name in names}
        return {
            "bits": self.bits,
            "n_images": self.images,
            "ones": self.ones.tolist(),
            "entropy": self.entropy.tolist(),
            "mean_entropy": float(self.entropy.mean()),
            "stuck_bits": self.stuck,
            "twin_bits": self.twins,
            "mean_correlation": self.mean_correlation,
            "occupancy": self.occupancy._asdict(),
            "radius": None if radii is None else radii.best,
            "radii": None if radii is None else {"n_queries": radii.queries, **curves},
        }


def inspect_codes(
    codes: Codes, labels: LabelArray, *, bits: int, queries: int = 2000, seed: int = 0
) -> Inspection:
    """Statistics of codes: their bits, how images share them, how far apart classes are."""
    array = check_codes(codes)
    if len(array) < 2:
        raise InvalidInputError(f"expected at least two codes, got {len(array)}")
    unpacked = unpack_bits(array, bits)
    ones = np.asarray(unpacked.mean(axis=0), dtype=np.float64)
    return Inspection(
        len(array),
        bits,
        ones,
        bit_entropy(ones),
        bit_correlation(unpacked),
        code_occupancy(array),
        radius_curve(array, check_labels(labels, len(array), "codes"), bits, queries, seed),
    )


def bit_entropy(ones: Scores) -> Scores:
    """Entropy in bits of binary variables, from their shares of ones."""
    shares = np.stack([ones, 1 - ones])
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(-(shares * logs).sum(axis=0) + 0.0, dtype=np.float64)


def bit_correlation(unpacked: NDArray[np.uint8]) -> Scores:
    """Pearson correlation between bits, shape (bits, bits), of 0/1 values (n, bits)."""
    with np.errstate(invalid="ignore"):  # of a bit that never changes
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(unpacked, rowvar=False)))
    np.fill_diagonal(correlation, 1.0)
    return correlation


def code_occupancy(codes: Codes) -> Occupancy:
    """How images share codes, of packed codes (n, bytes)."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return Occupancy(
        len(counts),
        int((counts == 1).sum()),
        int(counts.max()),
        float(-(shares * np.log2(shares)).sum() + 0.0),
    )


def radius_curve(
    codes: Codes, labels: LabelArray, bits: int, queries: int, seed: int
) -> RadiusCurve | None:
    """Compare labelled images with all other labelled ones, distance by distance."""
    labelled = np.flatnonzero(labels.any(axis=1) if labels.ndim == 2 else labels >= 0)
    codes, labels = codes[labelled], labels[labelled]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(codes))[:queries])
    sizes, good = counts_by_distance(
        codes, codes[chosen], labels, labels[chosen], bits=bits, exclude=chosen
    )
    relevant = good.sum(axis=1)
    sizes, good, relevant = sizes[relevant > 0], good[relevant > 0], relevant[relevant > 0]
    if not len(relevant):
        return None
    found = sizes.cumsum(axis=1)
    precision = [precision_within_radius(sizes, good, radius).mean() for radius in range(bits + 1)]
    return RadiusCurve(
        good.sum(axis=0),
        (sizes - good).sum(axis=0),
        np.array(precision),
        np.asarray((good.cumsum(axis=1) / relevant[:, None]).mean(axis=0)),
        np.asarray((found / found[:, -1:]).mean(axis=0)),
        np.asarray((found == 0).mean(axis=0)),
        len(relevant),
    )


@dataclass(frozen=True)
class InspectedModel:
    """A model's codes of one source, and their statistics."""

    inspection: Inspection  # the statistics
    images: InspectedImages  # the images, and whether the training held them out
    encoded: EncodedImages  # those that could be read, encoded
    fingerprint: str  # fingerprint of the model

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: the statistics, and what they were made of."""
        return {
            **self.inspection.to_dict(),
            "data": self.images.source.spec,
            "held_out": self.images.held_out,
            "fingerprint": self.fingerprint,
            "skipped": [
                {"image": image.name, "reason": image.reason} for image in self.encoded.skipped
            ],
        }

    def findings(self) -> list[str]:
        """What a person should know, in sentences."""
        found = self.inspection
        lines = [
            self.images.described,
            f"{found.occupancy.distinct:,} different codes for {found.images:,} images; "
            f"{found.occupancy.largest:,} images share the most frequent one, and "
            f"{found.occupancy.alone:,} images have a code of their own.",
            f"A bit carries {found.entropy.mean():.2f} of 1 bit on average; two bits correlate "
            f"by {found.mean_correlation:.2f} on average.",
        ]
        if found.stuck:
            lines.append(
                f"{len(found.stuck)} bits hardly ever change ({few_of(found.stuck)}): train "
                "longer, with latent normalisation, or with fewer bits."
            )
        if found.twins:
            pairs = few_of(f"{a} and {b}" for a, b in found.twins)
            lines.append(
                f"{len(found.twins)} pairs of bits say the same or the opposite ({pairs}): fewer "
                "bits would do as well."
            )
        lines.append(_radius_sentence(found.radii))
        return lines


class InspectedImages(NamedTuple):
    """What is inspected."""

    source: Source  # the images
    held_out: bool  # whether they are the images that the model's training held out for validation
    described: str  # a sentence on that


def images_to_inspect(encoder: Encoder, data: str | Source | None = None) -> InspectedImages:
    """The images given; without any, or if the model was trained on them, its validation images."""
    known = encoder.config.training.get("source")
    if data is None and not known:
        raise SourceError(
            "this model does not say which images it was trained on; name labelled images with "
            "--data SOURCE"
        )
    try:
        source = open_source(known if data is None else data)
    except SourceError as error:
        if data is not None:
            raise
        raise SourceError(
            f"the model was trained on {known}, which cannot be opened here ({error}); name "
            "labelled images with --data SOURCE"
        ) from error
    if source.spec != known:
        described = (
            f"These images of {source.spec} are not the validation images of the training: where "
            "they are also what evaluate scores, do not use --radius proposed, which is chosen on "
            "them. Without --data, the validation images are inspected."
        )
        return InspectedImages(source, False, described)
    validation = _validation_images(encoder, source)
    if validation is None:
        described = (
            f"The model was trained on images of {source.spec}, and which of them were held out "
            "cannot be found again: all figures here, and the radius, are better than for new "
            "images. Give images that the training never saw with --data."
        )
        return InspectedImages(source, False, described)
    described = f"Images that the training on {source.spec} held out for validation."
    return InspectedImages(validation, True, described)


def _validation_images(encoder: Encoder, source: Source) -> Source | None:
    """The images that the training on this source held out, split again in the same way.

    None where a figure that the model keeps of the split does not fit: another number of images,
    images that the training could not read, or a training without validation.
    """
    training = encoder.config.training
    config, images = training.get("configuration"), training.get("images", {})
    if not config or training.get("skipped") or not images.get("validation"):
        return None
    rows = source.labelled
    kept, held_out = split_validation(source.labels[rows], config["validation"], config["seed"])
    counts = dict(zip(source.classes, class_counts(source).tolist(), strict=True))
    if len(kept) != images["training"] or counts != training.get("images per class"):
        return None
    return source.subset(rows[held_out])


def inspect_model(
    encoder: Encoder,
    data: str | Source | None = None,
    *,
    seed: int = 0,
    strict: bool = False,
    progress: bool = False,
) -> InspectedModel:
    """Encode images, by default those that the training held out, and inspect their codes."""
    images = images_to_inspect(encoder, data)
    encoded = encode(encoder, images.source, strict=strict, progress=progress)
    found = inspect_codes(encoded.codes, encoded.labels, bits=encoder.bits, seed=seed)
    return InspectedModel(found, images, encoded, encoder.fingerprint)


def _curves(radii: RadiusCurve) -> dict[str, Scores]:
    return {
        "precision": radii.precision,
        "recall": radii.recall,
        "share of images in the pool": radii.pool,
    }


def radius_table(radii: RadiusCurve) -> Table:
    """What a search within each radius finds, to a few past the proposed one."""
    columns = {**_curves(radii), "queries without any": radii.empty}
    rows: list[list[Cell]] = []
    for radius in range(min(len(radii.precision), radii.best + 6)):
        name = f"{radius}{' (proposed)' if radius == radii.best else ''}"
        rows.append([name, *(float(values[radius]) for values in columns.values())])
    return Table(["radius", *columns], rows)


def write_inspection(inspected: InspectedModel, out: Path) -> Path:
    """Write inspection.json, inspection.html, inspection.md and their pictures."""
    found = inspected.inspection
    lead = f"{found.bits}-bit codes of {found.images:,} images of {inspected.images.source.spec}."
    page = Page(out, "How good are these codes?", lead)
    page.write_json(inspected.to_dict(), "inspection")
    for line in inspected.findings():
        page.paragraph(line)
    if found.radii is not None:
        _add_radii(page, found.radii)
    page.heading("Bits")
    page.figure(
        plot_steps({"ones": found.ones.tolist()}, xlabel="bit", ylabel="share of ones"),
        "ones",
        "Share of ones of each bit",
        "A good bit is 1 for about half of the images; with few classes, for some of them.",
    )
    names = {"xlabel": "bit", "ylabel": "bit", "title": "correlation, absolute"}
    page.figure(
        plot_matrix(np.abs(found.correlation), **names),
        "correlation",
        "Absolute correlation between bits",
        "Light off the diagonal: two bits that say the same, or the opposite.",
    )
    page.heading("Codes that most images share")
    page.picture(
        picture_sheet(_crowded(inspected), load_small),
        "codes",
        "Images of the most frequent codes",
        "Each row: images of one code.",
    )
    return page.write("inspection")


def _add_radii(page: Page, radii: RadiusCurve) -> None:
    page.heading("Distances")
    shares = {
        "within a class": (radii.within / max(1, radii.within.sum())).tolist(),
        "between classes": (radii.between / max(1, radii.between.sum())).tolist(),
    }
    names = {"xlabel": "Hamming distance", "ylabel": "share of pairs"}
    page.figure(
        plot_steps(shares, line=radii.best + 0.5, **names),
        "distances",
        "Hamming distances within and between classes",
        f"{radii.queries:,} images compared with all others. The less the two overlap, the better "
        "the codes tell classes apart. Dotted: the proposed radius.",
    )
    steps = range(len(radii.precision))
    curves = {name: Curve(steps, values.tolist()) for name, values in _curves(radii).items()}
    page.figure(
        plot_curves(curves, xlabel="Hamming radius", ylabel="mean over queries"),
        "radius",
        "Precision, recall and pool size by Hamming radius",
    )
    page.table(
        radius_table(radii),
        "Precision within a radius is 0 for a query that finds nothing. The proposed radius has "
        "the highest harmonic mean of precision and recall.",
    )


def _crowded(inspected: InspectedModel) -> list[SheetQuery]:
    """The most frequent codes, each with some of its images."""
    encoded, bits = inspected.encoded, inspected.inspection.bits
    _, first, place, counts = np.unique(
        encoded.codes, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    queries = []
    for code in np.argsort(-counts, kind="stable")[:_CODES_SHOWN].tolist():
        rows = np.flatnonzero(place.ravel() == code)
        shown = rows[np.linspace(0, len(rows) - 1, min(len(rows), _IMAGES_SHOWN)).astype(int)]
        row = int(first[code])
        own = unpack_bits(encoded.codes[row : row + 1], bits)[0]
        tiles = [Neighbour(encoded.uris[i], _label(inspected, i)) for i in shown.tolist()]
        sharing = {f"{counts[code]:,} images": tiles}
        label = _label(inspected, row)
        queries.append(SheetQuery(encoded.uris[row], label, sharing, own, title="one"))
    return queries


def _label(inspected: InspectedModel, row: int) -> str:
    return inspected.images.source.label_name(int(inspected.encoded.positions[row])) or "no label"


def _radius_sentence(radii: RadiusCurve | None) -> str:
    if radii is None:
        return "No two images share a label, so distances between classes and a radius are missing."
    best = radii.best
    return (
        f"Proposed radius for HDS: {best}. It holds {100 * radii.recall[best]:.1f} % of the images "
        f"of a query's class, with a precision of {radii.precision[best]:.3f}; the pool "
        f"holds {100 * radii.pool[best]:.1f} % of all images."
    )
