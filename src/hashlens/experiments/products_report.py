"""The experiment on a collection as a page: scores, times, pictures side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hashlens.evaluation.plots import Curve, plot_curves, save_figure
from hashlens.evaluation.report import Report
from hashlens.evaluation.sheets import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.evaluation.tables import Cell, Table
from hashlens.experiments.products import PLAIN, ProductsRun
from hashlens.experiments.published import printed_figure

NAMES = {
    PLAIN: "plain backbone F7",
    "es": "ES (F7)",
    "bcs": "BCS (codes)",
    "hds": "HDS (codes, then F7)",
}


def ways_table(scores: dict[str, Any]) -> Table:
    """Precision at k and time a query of each way, and how much faster than ES it is."""
    ways = scores["ways"]
    slowest = ways["es"]["ms_per_query"]
    rows: list[list[Cell]] = [
        [
            NAMES[key],
            *(ways[key]["precision"][str(k)] for k in (1, 10, 100, 1000)),
            f"{ways[key]['ms_per_query']:.3f}",
            f"{slowest / ways[key]['ms_per_query']:.1f}",
        ]
        for key in NAMES
        if key in ways
    ]
    headers = ["", *(f"precision@{k}" for k in (1, 10, 100, 1000)), "ms a query", "ES time / time"]
    return Table(headers, rows, digits=3)


def summary(run: ProductsRun, scores: dict[str, Any]) -> str:
    """Code length and accuracy, with what the number means."""
    text = f"{scores['bits']}-bit codes. "
    if scores["accuracy"] is None:
        return text + "No accuracy: the model has other classes."
    text += f"Classification accuracy {100 * scores['accuracy']:.2f} % on {scores['held_out']:,} "
    text += (
        "images that were held out of training."
        if scores["trained_here"]
        else "images; whether the given model saw them in training is not known here."
    )
    then = printed_figure("products", "accuracy", scores["bits"])
    if then is not None:
        text += f" (The paper, on its own collection, never released: {100 * then:.2f} %.)"
    return text


def write_products(run: ProductsRun, kept: dict[str, Any], command: str) -> Path:
    """Write report.html and report.md with curves and pictures; returns the page.

    Parameters
    ----------
    run : ProductsRun
        What was run.
    kept : dict
        What came out.
    command : str
        The command that was typed.
    """
    scores = kept["scores"]
    run.out.mkdir(parents=True, exist_ok=True)
    report = Report("Search in a collection", run.describe())
    report.paragraph(summary(run, scores))
    if scores["trained_here"]:
        report.paragraph(
            "As in the paper the queries come from the collection that the network was trained "
            "on, so that precision here is higher than for new pictures."
        )
    if run.scale is not None:
        report.paragraph(
            "Changed copies of a query's own picture are among the results and count as right: "
            "read the times at this size, and the precision at the collection's own."
        )
    report.heading("Scores and time")
    report.table(
        ways_table(scores),
        f"Time: median of single queries for ten results, encoding not included. "
        f"{kept['hardware']}; "
        + ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        + ".",
    )
    curves = {
        NAMES[key]: Curve([int(k) for k in way["precision"]], list(way["precision"].values()))
        for key, way in scores["ways"].items()
    }
    figure = save_figure(plot_curves(curves), run.out, "precision_at_k")
    report.picture(figure, "Precision at k of each way to search")
    report.heading("Five nearest pictures")
    sheet = _sheet(run, scores)
    sheet.save(run.out / "sheet.png", optimize=True)
    report.picture(
        sheet,
        "Queries with their five nearest pictures by each way",
        "Blue frame and tick: the query's class; orange frame and cross: another. The squares are "
        "the bits of the query's code, filled where 1.",
        file="sheet.png",
    )
    report.heading("Command")
    report.commands(command)
    return report.write(run.out)


def _sheet(run: ProductsRun, scores: dict[str, Any]) -> Image.Image:
    from hashlens.experiments.growth import grow

    images = run.collection if run.scale is None else grow(run.collection, run.scale, run.seed)
    nearest, shown = scores["nearest"], []
    places: dict[str, int] = {}

    def neighbour(row: int, query: int) -> Neighbour:
        uri = images.store.uri(int(images.rows[row]))
        places[uri] = row
        return Neighbour(
            uri, images.label_name(row) or "", "", bool(images.labels[row] == images.labels[query])
        )

    for position, query in enumerate(nearest["queries"]):
        rows = {
            NAMES[key]: [neighbour(row, query) for row in nearest[key][position] if row >= 0]
            for key in NAMES
            if key in nearest
        }
        own = neighbour(query, query)
        code = np.frombuffer(bytes.fromhex(nearest["codes"][position]), np.uint8)[None]
        shown.append(SheetQuery(own.uri, own.label, rows, code_bits(code, 0, scores["bits"])))
    return picture_sheet(shown, lambda uri: images.load(places[uri]), tile=96)
