"""What ``labels`` shows and writes: a page, a picture sheet, and the list of all images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from hashlens.evaluation.report import Report
from hashlens.evaluation.sheets import Neighbour, SheetQuery, picture_sheet
from hashlens.evaluation.tables import Cell, Table
from hashlens.experiments.examine_labels import LabelReport
from hashlens.experiments.score_report import load

_DRAWN, _DRAWN_NEIGHBOURS, _PAIRS = 24, 6, 10

METHOD = (
    "An image is doubtful where another class fits its features better than its label does, "
    "measured by a linear classifier fitted to all other images (ridge regression, each image "
    "left out in turn), relative to how well the images of each class fit on average. It is "
    "likely wrong where the image also fits the other class as well as that class's own images "
    "do on average. Not all of these are wrong: where features tell two classes apart badly, "
    "and among unusual images, right labels look wrong too."
)


def summary(report: LabelReport) -> str:
    """Lines for a terminal: counts, and the pairs of classes that are mixed up most."""
    lines = [
        f"{report.spec}: {len(report.labels):,} labelled images of {len(report.classes)} classes; "
        f"{report.likely_wrong:,} labels ({_percent(report)}) are likely wrong"
    ]
    if report.conflicts:
        lines.append(f"{len(report.conflicts)} groups of identical files with different labels")
    if report.pairs:
        lines.append(_pair_table(report, 5).text())
    return "\n".join(lines)


def _percent(report: LabelReport) -> str:
    return f"{100 * report.likely_wrong / len(report.labels):.1f} %"


def _pair_table(report: LabelReport, count: int) -> Table:
    rows: list[list[Cell]] = [
        [
            f"{report.classes[pair.label]} → {report.classes[pair.looks_like]}",
            pair.images,
            f"{100 * pair.share:.1f} %",
        ]
        for pair in report.pairs[:count]
    ]
    return Table(["label → looks like", "images", "of the label"], rows)


def write_label_report(report: LabelReport, out: Path) -> Path:
    """Write labels.html, labels.md, labels.png, doubtful.csv (all images) and labels.json.

    Parameters
    ----------
    report : LabelReport
        What was found.
    out : Path
        Directory, made if need be.

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(len(report.labels)), ensure_ascii=False, indent=1)
    (out / "labels.json").write_text(text + "\n", encoding="utf-8")
    with open(out / "doubtful.csv", "w", newline="", encoding="utf-8") as file:
        rows = [report.image(row) for row in report.found.order.tolist()]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    sheet = picture_sheet(_sheet(report), load)
    sheet.save(out / "labels.png", optimize=True)
    lead = summary(report).splitlines()[0]
    page = Report("Labels in doubt", f"{lead}.")
    for warning in report.warnings:
        page.paragraph(f"Note: {warning}.")
    page.paragraph(METHOD)
    page.paragraph(_balance(report))
    if report.pairs:
        page.heading("Classes that are mixed up")
        page.table(_pair_table(report, _PAIRS))
    if report.conflicts:
        page.heading("Identical files with different labels")
        page.table(_conflict_table(report))
    page.heading("The most doubtful images")
    page.picture(
        sheet,
        "Doubtful images with their nearest pictures",
        f"The {min(_DRAWN, len(report.labels))} most doubtful images, each with its nearest other "
        "images by features. Blue frame and tick: the same label; orange frame and cross: "
        "another. All images are in doubtful.csv, the most doubtful first.",
        file="labels.png",
    )
    return page.write(out, "labels")


def _balance(report: LabelReport) -> str:
    balance = report.balance
    return (
        f"Images of the largest class ({balance.largest}) for each image of the smallest "
        f"({balance.smallest}): {balance.ratio:.1f}. "
        f"Images without a label: {report.unlabelled:,}; "
        f"images that could not be read: {len(report.skipped):,}."
    )


def _conflict_table(report: LabelReport) -> Table:
    rows = [
        [report.uris[row], f"group {number}", report.classes[int(report.labels[row])]]
        for number, group in enumerate(report.conflicts[:50], 1)
        for row in group
    ]
    return Table(["file", "", "label"], rows)


def _sheet(report: LabelReport) -> list[SheetQuery]:
    queries = []
    for row in report.found.order[:_DRAWN].tolist():
        label = report.classes[int(report.labels[row])]
        other = report.classes[int(report.found.looks_like[row])]
        nearest = [
            Neighbour(
                report.uris[near],
                report.classes[int(report.labels[near])],
                right=bool(report.labels[near] == report.labels[row]),
            )
            for near in report.neighbours[row, :_DRAWN_NEIGHBOURS].tolist()
        ]
        queries.append(SheetQuery(report.uris[row], label, {f"like {other}": nearest}))
    return queries
