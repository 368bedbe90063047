"""``hashlens evaluate``: how well a model finds images of the same class."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.opening import make_folder, show_skipped
from hashlens.cli.radius import RADIUS, parse_radius, stored_radius


def evaluate_command(
    model: Path = typer.Argument(..., help="Folder of a model, or an exported .onnx file."),
    database: str = typer.Option(
        ..., help="Images to search: a folder with a sub-folder a class, a parquet file, ..."
    ),
    queries: str = typer.Option(..., help="Labelled images to search with, such as FOLDER#test."),
    out: Path | None = typer.Option(
        None, help="Folder for results.json, report.html, the curves and a picture sheet."
    ),
    radius: str | None = RADIUS,
    pool: int | None = typer.Option(
        None, min=1, help="Images in the pool of HDS, where no radius is given. [default: 4000]"
    ),
    strict: bool = typer.Option(False, "--strict", help="Stop at an unreadable image."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Score a model: precision at k, mean average precision and time, for BCS, HDS and ES.

    Queries that are in the database too are left out of their own results.

    Example: hashlens evaluate model/ --database photos#train --queries photos#test --out scores/
    """
    if radius is not None and pool is not None:
        raise typer.BadParameter("give --radius or --pool, not both")
    limit = parse_radius(radius)
    from hashlens.data.sources import open_source
    from hashlens.experiments.score_model import score_model
    from hashlens.experiments.score_report import score_table, summary, write_report
    from hashlens.models.encoder import Encoder

    make_folder(out)
    encoder = Encoder.load(model)
    if limit == "proposed":
        limit = stored_radius(encoder, model)
    scored = score_model(
        encoder,
        open_source(database),
        open_source(queries),
        radius=limit,
        pool=pool,
        strict=strict,
        progress=True,
    )
    for warning in scored.warnings:
        typer.echo(f"warning: {warning}", err=True)
    show_skipped(scored.skipped)
    page = None if out is None else write_report(scored, out)
    if as_json:
        typer.echo(json.dumps(scored.to_dict(), ensure_ascii=False))
        return
    typer.echo(summary(scored))
    typer.echo(score_table(scored.evaluation).text())
    if page is not None:
        typer.echo(f"report: {page}")
