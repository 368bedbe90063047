"""``hashlens evaluate``, ``inspect`` and ``labels``: how good codes and labels are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import typer

from hashlens.cli.opening import RADIUS, make_folder, parse_radius, passed_over, stored_radius
from hashlens.cli.options import MODEL, READING, Answer, note, show_skipped


def evaluate_command(
    model: Path = MODEL,
    database: str = typer.Option(
        ..., help="Images to search: a folder with one sub-folder per class, a parquet file, ..."
    ),
    queries: str = typer.Option(..., help="Labelled images to search with, such as FOLDER#test."),
    out: Path | None = typer.Option(
        None, help="Folder for results.json, report.html, the curves and a picture sheet."
    ),
    radius: str | None = RADIUS,
    pool: int | None = typer.Option(
        None,
        min=1,
        help="Images in the pool of HDS and ACS, if no radius is given; by default as many as a "
        "search for k results takes.",
    ),
    map_at: list[int] | None = typer.Option(
        None,
        min=1,
        metavar="K",
        help="Further cutoffs of mean average precision, next to 1000 and all; may be repeated.",
    ),
    reading: dict[str, Any] = READING,
) -> Answer:
    """Score a model: precision at k, mean average precision and time, for each way to search.

    BCS: codes only. ACS: codes, then the query's latent values. HDS: codes, then features. ES:
    features only.

    A query that is also in the database is left out of its own results.

    Example: hashlens evaluate model/ --database photos#train --queries photos#test --out scores/
    """
    if radius is not None and pool is not None:
        raise typer.BadParameter("give --radius or --pool, not both")
    limit = parse_radius(radius)
    from hashlens.data.opening import open_source
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.score import evaluate, write_report

    make_folder(out)
    encoder = Encoder.load(model)
    if limit == "proposed":
        limit = stored_radius(encoder, model)
    base, asked = open_source(database, **reading), open_source(queries, **reading)
    scored = evaluate(
        encoder,
        base,
        asked,
        radius=limit,
        pool=pool,
        map_at=map_at or (),
        strict=reading["strict"],
        progress=True,
    )
    for warning in scored.warnings:
        note(f"warning: {warning}")
    show_skipped(scored.skipped)
    others = Counter(base.passed_over) + Counter(asked.passed_over)
    lines = [str(scored) + passed_over(others)]
    if out is not None:
        lines.append(f"report: {write_report(scored, out)}")
    return Answer(scored.to_dict(), "\n".join(lines))


def inspect_command(
    model: Path = MODEL,
    data: str | None = typer.Option(
        None,
        help="Labelled images. [default: the images that the training held out for validation]",
    ),
    out: Path | None = typer.Option(None, help="Folder for a page with pictures."),
    seed: int = typer.Option(0, help="Chooses the images to compare, if there are many."),
    reading: dict[str, Any] = READING,
) -> Answer:
    """Check a model's codes, and propose a Hamming radius for HDS.

    Shows how evenly bits are used, how they correlate, how images share codes, and how far
    classes are apart. The radius is stored in the model's folder.

    Example: hashlens inspect model/ --out inspection/
    """
    from hashlens.data.opening import open_source
    from hashlens.models.checkpoint import update_config
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.inspect import inspect_model, radius_table, write_inspection

    make_folder(out)
    encoder = Encoder.load(model)
    source = None if data is None else open_source(data, **reading)
    inspected = inspect_model(encoder, source, seed=seed, strict=reading["strict"], progress=True)
    show_skipped(inspected.encoded.skipped)
    lines = inspected.findings()
    radii = inspected.inspection.radii
    if radii is not None:
        if model.is_dir():
            update_config(model, radius=radii.best)
            outcome = f"stored in {model}; search with --radius proposed"
        else:
            outcome = f"not stored in {model}; search with --radius {radii.best}"
        lines += ["", radius_table(radii).text(), "", f"radius {radii.best}: {outcome}"]
    if out is not None:
        lines.append(f"page: {write_inspection(inspected, out)}")
    return Answer(inspected.to_dict(), "\n".join(lines))


def labels_command(
    model: Path = MODEL,
    data: str = typer.Option(
        ..., help="Labelled images: a folder with one sub-folder per class, a parquet file, ..."
    ),
    out: Path | None = typer.Option(
        None, help="Folder for the page, a picture sheet and the list of all images as CSV."
    ),
    first: int = typer.Option(20, min=0, help="Number of doubtful images to print."),
    reading: dict[str, Any] = READING,
) -> Answer:
    """Rank labels by how doubtful they are, and show which classes are mixed up.

    The model should not have learned these labels by heart: one trained with --freeze-backbone,
    or on other images, finds the most.

    Example: hashlens labels model/ --data photos/ --out doubts/
    """
    from hashlens.data.opening import open_source
    from hashlens.models.encoder import Encoder
    from hashlens.workflows.labels import examine_labels, summary, write_label_page

    make_folder(out)
    encoder = Encoder.load(model)
    report = examine_labels(
        encoder, open_source(data, **reading), strict=reading["strict"], progress=True
    )
    for warning in report.warnings:
        note(f"warning: {warning}")
    show_skipped(report.skipped)
    lines = [summary(report)]
    for row in report.found.order[:first].tolist():
        shown = report.image(row)
        pair = f"{shown['label']} → {shown['looks_like']}"
        lines.append(f"{shown['doubt']:7.3f}  {pair}  {shown['image']}")
    if out is not None:
        lines.append(f"report: {write_label_page(report, out)}")
    return Answer(report.to_dict(first), "\n".join(lines))
