"""``hashlens evaluate``: how well a model finds images of the same class."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.opening import RADIUS, make_folder, parse_radius, show_skipped, stored_radius


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
    from hashlens.data.opening import open_source
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.score import score_model, score_table, summary, write_report

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


def inspect_command(
    model: Path = typer.Argument(..., help="Folder of a model, or an exported .onnx file."),
    data: str = typer.Option(
        ..., help="Labelled images, best ones that were not trained on, such as FOLDER#test."
    ),
    out: Path | None = typer.Option(None, help="Folder for a page with pictures."),
    seed: int = typer.Option(0, help="Decides which images are compared, where they are many."),
    strict: bool = typer.Option(False, "--strict", help="Stop at an unreadable image."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Look at a model's codes, and propose a Hamming radius for HDS.

    Shows how evenly bits are used, how they correlate, how images share codes, and how far
    classes are apart. The radius is stored in the model's folder.

    Example: hashlens inspect model/ --data photos#test --out inspection/
    """
    from hashlens.data.opening import open_source
    from hashlens.models.checkpoint import update_config
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.inspect import inspect_model, radius_table, write_inspection

    make_folder(out)
    encoder = Encoder.load(model)
    inspected = inspect_model(encoder, open_source(data), seed=seed, strict=strict, progress=True)
    show_skipped(inspected.encoded.skipped)
    page = None if out is None else write_inspection(inspected, out)
    radii = inspected.inspection.radii
    if radii is not None and model.is_dir():
        update_config(model, radius=radii.best)
    if as_json:
        typer.echo(json.dumps(inspected.to_dict(), ensure_ascii=False))
        return
    for line in inspected.findings():
        typer.echo(line)
    if radii is not None:
        typer.echo(f"\n{radius_table(radii).text()}\n")
        if model.is_dir():
            typer.echo(f"radius {radii.best}: stored in {model}; search with --radius proposed")
        else:
            typer.echo(
                f"radius {radii.best}: not stored in {model}; search with --radius {radii.best}"
            )
    if page is not None:
        typer.echo(f"page: {page}")


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
    from hashlens.data.opening import open_source
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.labels import examine_labels, summary, write_label_report

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
