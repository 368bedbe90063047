"""The comparison as a page: curves, tables and pictures, beside what was printed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from hashlens.evaluation.plots import save_figure
from hashlens.evaluation.report import Report
from hashlens.evaluation.sheets import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.evaluation.tables import Cell, Table
from hashlens.experiments.comparison import Comparison, Job
from hashlens.experiments.comparison_figure import Measured, comparison_figure
from hashlens.experiments.published import OURS, printed_figure, printed_map, printed_precision

Kept: TypeAlias = Mapping[Job, Mapping[str, Any]]

_PRECISION_AT = (100, 400, 1000)
WAYS = {
    "es": "ES: exhaustive, Euclidean over F7",
    "bcs": "BCS: binary codes alone",
    "hds": "HDS: binary codes, then F7 in the pool",
    "neural codes": "Neural codes: ES over F7 compressed by PCA",
}


def _is_theirs(run: Comparison) -> bool:
    """Whether the printed figures are of this protocol; those of another do not compare."""
    return run.split.protocol == "paper"


def precision_table(run: Comparison, kept: Kept) -> Table:
    """Precision at k of every method at the curves' length, beside the printed one."""
    bits = run.piece.bits[0]
    printed = printed_precision(run.piece.name, bits) if _is_theirs(run) else {}
    compared = ["printed @1000", "difference"] if printed else []
    headers = ["method", *(f"@{k}" for k in _PRECISION_AT), *compared, "mAP@1000", "over ties"]
    headers += ["training s", "encoding s"]
    rows: list[list[Cell]] = []
    for method in run.piece.methods:
        scores = kept[Job(method, bits)]["scores"]
        found = scores["precision"]
        then = printed.get(method, {}).get(1000)
        beside: list[Cell] = [then, None if then is None else f"{found['1000'] - then:+.3f}"]
        rows.append(
            [
                method,
                *(found[str(k)] for k in _PRECISION_AT),
                *(beside if printed else []),
                scores["map@1000"],
                scores["map@1000_ties"],
                f"{scores['fit_seconds']:.1f}",
                f"{scores['encode_seconds']:.1f}",
            ]
        )
    return Table(headers, rows, digits=3)


def map_table(run: Comparison, kept: Kept) -> Table:
    """Mean average precision at 1,000 by code length, each beside the printed one."""
    lengths = sorted(run.piece.bits)
    printed = printed_map(run.piece.name) if _is_theirs(run) else {}
    headers = ["method"]
    for bits in lengths:
        headers += [f"{bits} bits", "printed"]
    rows: list[list[Cell]] = [
        [method]
        + [
            value
            for bits in lengths
            for value in (
                kept[Job(method, bits)]["scores"]["map@1000"],
                printed.get(method, {}).get(bits),
            )
        ]
        for method in run.piece.methods
    ]
    return Table(headers, rows, digits=3)


def error_table(run: Comparison, kept: Kept) -> Table:
    """Classification error on the queries, in per cent, of the methods that classify."""
    rows: list[list[Cell]] = []
    for job, result in sorted(kept.items(), key=lambda item: (item[0].method, item[0].bits)):
        error = result["scores"]["classification_error"]
        if error is None or job.bits not in run.piece.error_bits:
            continue
        then = None
        if job.method == OURS:
            then = printed_figure(run.piece.name, "classification_error", job.bits)
        rows.append([job.method, job.bits, 100 * error, None if then is None else 100 * then])
    return Table(["method", "bits", "error %", "printed %"], rows, digits=2)


def ways_table(run: Comparison, kept: Kept) -> Table | None:
    """Our three ways to search and neural codes: scores, time a query, and its ratio to ES."""
    if OURS not in run.piece.methods:
        return None
    ways = kept[Job(OURS, run.piece.bits[0])]["scores"]["ways"]
    slowest = ways["es"]["ms_per_query"]
    rows: list[list[Cell]] = [
        [
            text,
            ways[key]["precision"]["10"],
            ways[key]["precision"]["1000"],
            ways[key]["map@1000"],
            f"{ways[key]['ms_per_query']:.3f}",
            f"{slowest / ways[key]['ms_per_query']:.1f}",
        ]
        for key, text in WAYS.items()
    ]
    headers = ["way", "precision@10", "precision@1000", "mAP@1000", "ms a query", "ES time / time"]
    return Table(headers, rows, digits=3)


def sheets(run: Comparison, kept: Kept) -> list[Image.Image]:
    """One picture a query: its five nearest by each method, and the bits of our code."""
    bits = run.piece.bits[0]
    results = {method: kept[Job(method, bits)]["scores"]["sheet"] for method in run.piece.methods}
    rows = {run.split.images.uris[row]: row for row in _shown_rows(results)}
    last = results[run.piece.methods[-1]]
    return [
        picture_sheet(
            [_sheet_query(run, results, position, last[position])],
            lambda uri: run.split.images.load(rows[uri]),
            tile=72,
        )
        for position in range(len(last))
    ]


def write_comparison(run: Comparison, kept: Kept, command: str) -> Path:
    """Write report.html and report.md with curves and sheets; returns the page.

    Parameters
    ----------
    run : Comparison
        What was run.
    kept : mapping of Job to dict
        What came out.
    command : str
        The command that was typed.
    """
    piece, bits = run.piece, run.piece.bits[0]
    run.out.mkdir(parents=True, exist_ok=True)
    newest = max(kept.values(), key=lambda result: str(result["finished"]))
    report = Report(f"{piece.title}: hashing methods compared", run.split.describe())
    report.paragraph(
        f"Images: {run.split.images.spec}. Shallow methods work on {_features(run.features)}. "
        f"Seed {run.seed}. {newest['hardware']}; "
        + ", ".join(f"{name} {number}" for name, number in newest["versions"].items())
        + "."
    )
    report.heading(f"Precision at k with {bits} bits")
    printed = printed_precision(piece.name, bits) if _is_theirs(run) else {}
    curves = {
        method: Measured(kept[Job(method, bits)]["scores"]["precision"], printed.get(method, {}))
        for method in piece.methods
    }
    figure = save_figure(comparison_figure(curves), run.out, "precision_at_k")
    dotted = " Dotted: as the authors printed it." if printed else ""
    report.picture(
        figure,
        "Precision at k of every method",
        f"Search with binary codes alone (BCS); equal distances in the order of ids.{dotted}",
    )
    report.table(
        precision_table(run, kept),
        "Precision at k and mean average precision (over the relevant ones among the first 1,000; "
        "'over ties': its expectation over all orders of equal distances), binary codes alone. "
        "Training 0.0: a trained model was given.",
    )
    if len(piece.bits) > 1:
        report.heading("Mean average precision by code length")
        report.table(map_table(run, kept), "mAP@1000, binary codes alone.")
    errors = error_table(run, kept)
    if errors.rows:
        report.heading("Classification error")
        report.table(errors, "On the queries. The shallow methods do not classify.")
    ways = ways_table(run, kept)
    if ways is not None:
        report.heading("Ways to search with our network")
        report.table(
            ways,
            f"{bits} bits. Time: median of single queries for ten results, encoding not included.",
        )
    report.heading("Nearest pictures")
    for number, sheet in enumerate(sheets(run, kept), 1):
        name = f"query_{number}.png"
        sheet.save(run.out / name, optimize=True)
        report.picture(sheet, f"Query {number} with its five nearest by each method", file=name)
    report.paragraph(
        "Queries spread over the classes, the same for every method. Blue frame and tick: the "
        "query's class; orange frame and cross: another. Under a picture its class and how many "
        f"bits differ. The squares are the bits of {piece.methods[-1]}'s code of the query, filled "
        "where 1."
    )
    report.heading("Command")
    report.commands(command)
    return report.write(run.out)


def typed(arguments: Sequence[str]) -> str:
    """A command line as it is typed."""
    return "hashlens " + shlex.join(arguments)


def _features(kind: str) -> str:
    return {"gist": "GIST (512)", "pixels": "raw pixels"}.get(kind, f"F7 of {kind}")


def _shown_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[int]:
    shown: set[int] = set()
    for entries in results.values():
        for entry in entries:
            shown |= {entry["query"], *entry["nearest"]}
    return shown


def _sheet_query(
    run: Comparison,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    position: int,
    drawn: Mapping[str, Any],
) -> SheetQuery:
    images = run.split.images
    query = drawn["query"]
    nearest = {
        method: [
            Neighbour(
                images.uris[row],
                images.classes[images.labels[row]],
                f"{distance} bits",
                bool(images.labels[row] == images.labels[query]),
            )
            for row, distance in zip(
                entries[position]["nearest"], entries[position]["distances"], strict=True
            )
        ]
        for method, entries in results.items()
    }
    code = np.frombuffer(bytes.fromhex(drawn["code"]), np.uint8)[None]
    bits = code_bits(code, 0, drawn["bits"])
    return SheetQuery(images.uris[query], images.classes[images.labels[query]], nearest, bits)
