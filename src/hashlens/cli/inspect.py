"""``hashlens inspect``: how good are a model's codes."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.opening import make_folder, show_skipped


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
    from hashlens.data.sources import open_source
    from hashlens.experiments.inspect_model import inspect_model, radius_table, write_inspection
    from hashlens.models.checkpoint import update_config
    from hashlens.models.encoder import Encoder

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
