"""How good are a model's codes: statistics, a radius for HDS, and a page with pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.data.source import Source
from hashlens.evaluation.inspection import Inspection, RadiusCurve, inspect_codes
from hashlens.files import replace_file
from hashlens.models.encoder import Encoder
from hashlens.report.page import Report
from hashlens.report.plot import Curve, plot_bars, plot_curves, plot_matrix, save_figure
from hashlens.report.sheet import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.report.table import Table
from hashlens.types import EncodedImages
from hashlens.workflows.score import encode, load

_CODES_SHOWN, _IMAGES_SHOWN = 5, 8


@dataclass(frozen=True)
class InspectedModel:
    """A model's codes of one source, looked at.

    Attributes
    ----------
    inspection : Inspection
        The statistics.
    source : Source
        The images.
    encoded : EncodedImages
        Those that could be read, encoded.
    fingerprint : str
        Of the model.
    """

    inspection: Inspection
    source: Source
    encoded: EncodedImages
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: the statistics, and what they were made of."""
        return {
            **self.inspection.to_dict(),
            "data": self.source.spec,
            "fingerprint": self.fingerprint,
            "skipped": [
                {"image": image.name, "reason": image.reason} for image in self.encoded.skipped
            ],
        }

    def findings(self) -> list[str]:
        """What a person should know, in sentences."""
        found = self.inspection
        lines = [
            f"{found.occupancy.distinct:,} different codes for {found.images:,} images; the most "
            f"frequent one stands for {found.occupancy.largest:,}, and {found.occupancy.alone:,} "
            "images have a code of their own.",
            f"A bit carries {found.entropy.mean():.2f} of 1 bit on average; two bits correlate "
            f"by {found.mean_correlation:.2f} on average.",
        ]
        if found.stuck:
            lines.append(
                f"{len(found.stuck)} bits hardly ever change ({_few(found.stuck)}): train longer, "
                "with latent normalisation, or with fewer bits."
            )
        if found.twins:
            pairs = _few([f"{a} and {b}" for a, b in found.twins])
            lines.append(
                f"{len(found.twins)} pairs of bits say the same or the opposite ({pairs}): fewer "
                "bits would do as well."
            )
        lines.append(_radius_sentence(found.radii))
        return lines


def inspect_model(
    encoder: Encoder,
    source: Source,
    *,
    seed: int = 0,
    strict: bool = False,
    progress: bool = False,
) -> InspectedModel:
    """Encode a source and look at its codes."""
    encoded = encode(encoder, source, strict=strict, progress=progress)
    found = inspect_codes(encoded.codes, encoded.labels, bits=encoder.bits, seed=seed)
    return InspectedModel(found, source, encoded, encoder.fingerprint)


def radius_table(radii: RadiusCurve) -> Table:
    """What a search within each radius finds, to a few past the proposed one."""
    shown = range(min(len(radii.precision), radii.best + 6))
    return Table(
        ["radius", "precision", "recall", "share of images in the pool", "queries without any"],
        [
            [
                f"{radius}{' (proposed)' if radius == radii.best else ''}",
                float(radii.precision[radius]),
                float(radii.recall[radius]),
                float(radii.pool[radius]),
                float(radii.empty[radius]),
            ]
            for radius in shown
        ],
    )


def write_inspection(inspected: InspectedModel, out: Path) -> Path:
    """Write inspection.json, inspection.html, inspection.md and their pictures."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(inspected.to_dict(), indent=2, ensure_ascii=False)
    replace_file(out / "inspection.json", text + "\n")
    found = inspected.inspection
    lead = f"{found.bits}-bit codes of {found.images:,} images of {inspected.source.spec}."
    report = Report("How good are these codes?", lead)
    for line in inspected.findings():
        report.paragraph(line)
    if found.radii is not None:
        _add_radii(report, found.radii, out)
    report.heading("Bits")
    ones = plot_bars({"share of ones": found.ones.tolist()}, x_label="bit", y_label="share of ones")
    report.picture(
        save_figure(ones, out, "ones"),
        "Share of ones of each bit",
        "A good bit is 1 for about half of the images; with few classes, for some of them.",
    )
    matrix = plot_matrix(np.abs(found.correlation), label="bit", title="correlation, absolute")
    report.picture(
        save_figure(matrix, out, "correlation"),
        "Absolute correlation between bits",
        "Light off the diagonal: two bits that say the same, or the opposite.",
    )
    report.heading("Codes that most images share")
    sheet = picture_sheet(_crowded(inspected), load)
    replace_file(out / "codes.png", partial(sheet.save, optimize=True))
    report.picture(
        sheet,
        "Images of the most frequent codes",
        "Each row: images of one code.",
        file="codes.png",
    )
    return report.write(out, "inspection")


def _add_radii(report: Report, radii: RadiusCurve, out: Path) -> None:
    report.heading("Distances")
    shares = {
        "within a class": (radii.within / max(1, radii.within.sum())).tolist(),
        "between classes": (radii.between / max(1, radii.between.sum())).tolist(),
    }
    bars = plot_bars(
        shares, x_label="Hamming distance", y_label="share of pairs", line=radii.best + 0.5
    )
    report.picture(
        save_figure(bars, out, "distances"),
        "Hamming distances within and between classes",
        f"{radii.queries:,} images compared with all others. The less the two overlap, the better "
        "the codes tell classes apart. Dotted: the proposed radius.",
    )
    steps = list(range(len(radii.precision)))
    curves = {
        "precision": Curve(steps, radii.precision.tolist()),
        "recall": Curve(steps, radii.recall.tolist()),
        "share of images in the pool": Curve(steps, radii.pool.tolist()),
    }
    plot = plot_curves(curves, x_label="Hamming radius", y_label="mean over queries")
    report.picture(
        save_figure(plot, out, "radius"), "Precision, recall and pool size by Hamming radius"
    )
    report.table(
        radius_table(radii),
        "Precision within a radius is 0 for a query that finds nothing at all. The proposed radius "
        "has the highest harmonic mean of precision and recall.",
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
        queries.append(
            SheetQuery(
                encoded.uris[row],
                _label(inspected, row),
                {
                    f"{counts[code]:,} images": [
                        Neighbour(encoded.uris[i], _label(inspected, i)) for i in shown.tolist()
                    ]
                },
                code_bits(encoded.codes, row, bits),
                title="one",
            )
        )
    return queries


def _label(inspected: InspectedModel, row: int) -> str:
    return inspected.source.label_name(int(inspected.encoded.positions[row])) or "no label"


def _radius_sentence(radii: RadiusCurve | None) -> str:
    if radii is None:
        return "No two images share a label, so distances of classes and a radius are left out."
    best = radii.best
    return (
        f"Proposed radius for HDS: {best}. Within it lie {100 * radii.recall[best]:.1f} % of the "
        f"images of a query's class, with a precision of {radii.precision[best]:.3f}; the pool "
        f"holds {100 * radii.pool[best]:.1f} % of all images."
    )


def _few(names: list[Any]) -> str:
    return ", ".join(map(str, names[:6])) + (", …" if len(names) > 6 else "")
