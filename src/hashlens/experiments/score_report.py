"""What ``evaluate`` and ``demo`` show and write: table, curves, picture sheet, page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hashlens.data.images import load_image
from hashlens.evaluation.metrics import PRECISION_AT
from hashlens.evaluation.plots import Curve, plot_curves, save_figure
from hashlens.evaluation.relevance import Labels, shares_label
from hashlens.evaluation.report import Report
from hashlens.evaluation.results import Evaluation
from hashlens.evaluation.sheets import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.evaluation.tables import Cell, Table
from hashlens.experiments.score_model import ScoredModel
from hashlens.protocols import Mode

MODE_NAMES: dict[Mode, str] = {"bcs": "BCS", "hds": "HDS", "es": "ES"}
_SHOWN = 8

WAYS = (
    "BCS: binary codes only. HDS: binary codes first, then features within the pool. "
    "ES: exhaustive search over features."
)
TIES = (
    "mAP@1000: average precision over the first 1,000 results, divided by the relevant ones "
    "found there; images at the same distance stand in the order of ids. 'Over ties' is its "
    "expectation over all orders of them. Precision at k is divided by k, so a class of fewer "
    "than k images cannot reach 1. Time: median of single queries for ten results, encoding not "
    "included."
)


def score_table(evaluation: Evaluation, ks: Sequence[int] = (1, 10, 100, 1000)) -> Table:
    """One row a way to search.

    Parameters
    ----------
    evaluation : Evaluation
        The scores.
    ks : sequence of int
        Columns of precision at k.
    """
    headers = ["", "mAP@1000", "over ties", *(f"precision@{k}" for k in ks), "ms a query"]
    rows: list[list[Cell]] = [
        [
            MODE_NAMES[mode],
            scores.mean_average_precision,
            scores.expected_mean_average_precision,
            *(float(scores.precision[k - 1]) for k in ks),
            f"{scores.ms_per_query:.3f}",
        ]
        for mode, scores in evaluation.modes.items()
    ]
    return Table(headers, rows)


def summary(scored: ScoredModel) -> str:
    """One line: what was searched with what, and the classification error."""
    found = scored.evaluation
    error = found.classification_error
    wrong = "" if error is None else f" Classification error {100 * error:.2f} %."
    return (
        f"{found.bits}-bit codes; {found.n_database:,} images of {scored.database_spec} searched "
        f"with {found.n_queries:,} queries of {scored.query_spec}.{wrong}"
    )


def write_report(
    scored: ScoredModel, out: Path, *, title: str = "Hashlens evaluation", commands: str = ""
) -> Path:
    """Write results.json, report.html, report.md, the curves and the picture sheet.

    Parameters
    ----------
    scored : ScoredModel
        What was found.
    out : Path
        Directory, made if need be.
    title : str
        Of the page.
    commands : str
        Commands to show at the end of the page.

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(scored.to_dict(), indent=2, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    curves = save_figure(plot_curves(_curves(scored.evaluation)), out, "precision_at_k")
    queries, caption = sheet_queries(scored)
    sheet = picture_sheet(queries, load)
    sheet.save(out / "sheet.png", optimize=True)
    report = Report(title, summary(scored))
    for warning in (*scored.warnings, *_skipped(scored)):
        report.paragraph(f"Note: {warning}.")
    report.heading("Scores")
    report.table(score_table(scored.evaluation), f"{WAYS} {_pool(scored)} {TIES}")
    report.heading("Precision at k")
    report.picture(curves, "Precision at k of each way to search")
    report.heading("Nearest pictures")
    report.picture(sheet, "Queries with their nearest pictures", caption, file="sheet.png")
    if commands:
        report.heading("Next")
        report.commands(commands)
    return report.write(out)


def sheet_queries(
    scored: ScoredModel, *, drawn: int = 5, failed: int = 3, seed: int = 0
) -> tuple[list[SheetQuery], str]:
    """Queries for a sheet: some drawn at random, and some that the codes answer wrongly.

    Parameters
    ----------
    scored : ScoredModel
        What was found.
    drawn, failed : int
        How many of each; fewer where there are not as many.
    seed : int
        Decides which.

    Returns
    -------
    queries : list of SheetQuery
    caption : str
        Says how they were chosen.
    """
    order = np.random.default_rng(seed).permutation(len(scored.queries))
    chosen = order[:drawn].tolist()
    first = next(iter(scored.evaluation.modes))
    wrong = [row for row in order[drawn:].tolist() if not all(_right(scored, first, row)[:_SHOWN])][
        :failed
    ]
    caption = f"{len(chosen)} queries drawn at random"
    if wrong:
        caption += f", then {len(wrong)} of those that {MODE_NAMES[first]} answers wrongly in part"
    caption += (
        ". Blue frame and tick: a class of the query; orange frame and cross: another class. "
        "Under each picture its class and its distance to the query: bits that differ for BCS, "
        "Euclidean for HDS and ES. The squares are the bits of the query's code, filled where 1."
    )
    return [_sheet_query(scored, row) for row in (*chosen, *wrong)], caption


def load(uri: str) -> Image.Image:
    """Open a picture for a sheet, at a size near the one it is drawn in."""
    return load_image(uri, size_hint=120)


def _sheet_query(scored: ScoredModel, row: int) -> SheetQuery:
    nearest = {}
    for mode, scores in scored.evaluation.modes.items():
        right = _right(scored, mode, row)
        nearest[MODE_NAMES[mode]] = [
            Neighbour(
                scored.database_uris[found],
                _label(scored, scored.database.labels[found]),
                f"{distance:.0f} bits" if mode == "bcs" else f"{distance:.3g}",
                correct,
            )
            for found, distance, correct in zip(
                scores.nearest[row, :_SHOWN].tolist(),
                scores.distances[row, :_SHOWN].tolist(),
                right,
                strict=False,
            )
            if found >= 0
        ]
    return SheetQuery(
        scored.query_uris[row],
        _label(scored, scored.queries.labels[row]),
        nearest,
        code_bits(scored.queries.codes, row, scored.evaluation.bits),
    )


def _right(scored: ScoredModel, mode: Mode, row: int) -> list[bool]:
    found = scored.evaluation.modes[mode].nearest[row]
    found = found[found >= 0]
    asked = scored.queries.labels[row : row + 1]
    return [bool(right) for right in shares_label(asked, scored.database.labels[found])[0]]


def _label(scored: ScoredModel, label: Labels) -> str:
    if label.ndim:
        return ", ".join(scored.classes[place] for place in np.flatnonzero(label))
    return scored.classes[int(label)] if label >= 0 else "no label"


def _curves(evaluation: Evaluation) -> dict[str, Curve]:
    return {
        MODE_NAMES[mode]: Curve(
            PRECISION_AT, [float(scores.precision[k - 1]) for k in PRECISION_AT]
        )
        for mode, scores in evaluation.modes.items()
    }


def _pool(scored: ScoredModel) -> str:
    if scored.radius is not None:
        return f"Pool of HDS, and limit of BCS: Hamming radius {scored.radius}."
    if scored.pool is None or scored.pool >= len(scored.database):
        return "Pool of HDS: all images, so that HDS is ES here."
    return f"Pool of HDS: the {scored.pool:,} nearest codes."


def _skipped(scored: ScoredModel) -> list[str]:
    if not scored.skipped:
        return []
    names = ", ".join(image.name for image in scored.skipped[:5])
    return [f"{len(scored.skipped)} images could not be read and were skipped: {names}"]
