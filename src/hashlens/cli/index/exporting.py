"""``hashlens index export``: the index as a file of another library."""

from __future__ import annotations

from pathlib import Path

import typer

from hashlens.cli.index.options import INDEX, JSON, tell
from hashlens.cli.opening import open_index


def export_command(
    index: Path = INDEX,
    out: Path = typer.Argument(..., help="File or folder to write; must not exist."),
    format: str = typer.Option(
        "faiss", help="faiss: IndexBinaryFlat; parquet: one table; numpy: a folder of arrays."
    ),
    as_json: bool = JSON,
) -> None:
    """Write the index as a file that other libraries read.

    Example: hashlens index export shop.idx shop.faiss --format faiss
    """
    from hashlens.index.exporting import FORMATS

    if format not in FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(FORMATS)}, got {format!r}")
    with open_index(index, read_only=True) as opened:
        opened.export(out, format)
        images = len(opened)
    result = {"index": str(index), "out": str(out), "format": format, "images": images}
    tell(result, f"wrote {images} images to {out}", as_json)
