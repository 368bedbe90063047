"""``hashlens labels``: which labels of a source are likely wrong."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.opening import make_folder, show_skipped


def labels_command(
    model: Path = typer.Argument(..., help="Folder of a model, or an exported .onnx file."),
    data: str = typer.Option(
        ..., help="Labelled images: a folder with a sub-folder a class, a parquet file, ..."
    ),
    out: Path | None = typer.Option(
        None, help="Folder for the page, a picture sheet and the list of all images as CSV."
    ),
    first: int = typer.Option(20, min=0, help="How many of the most doubtful images are printed."),
    strict: bool = typer.Option(False, "--strict", help="Stop at an unreadable image."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Rank labels by how doubtful they are, and show which classes are mixed up.

    The model should not have learned these labels by heart: one trained with --freeze-backbone,
    or on other images, finds the most.

    Example: hashlens labels model/ --data photos/ --out doubts/
    """
    from hashlens.data.sources import open_source
    from hashlens.experiments.examine_labels import examine_labels
    from hashlens.experiments.label_report import summary, write_label_report
    from hashlens.models.encoder import Encoder

    make_folder(out)
    encoder = Encoder.load(model)
    report = examine_labels(encoder, open_source(data), strict=strict, progress=True)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    show_skipped(report.skipped)
    page = None if out is None else write_label_report(report, out)
    if as_json:
        typer.echo(json.dumps(report.to_dict(first), ensure_ascii=False))
        return
    typer.echo(summary(report))
    for row in report.found.order[:first].tolist():
        shown = report.image(row)
        pair = f"{shown['label']} → {shown['looks_like']}"
        typer.echo(f"{shown['doubt']:7.3f}  {pair}  {shown['image']}")
    if page is not None:
        typer.echo(f"report: {page}")
