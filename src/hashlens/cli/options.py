"""Options that several commands share, and the one way in which they print a result."""

from __future__ import annotations

import json
from typing import Any

import typer

MODEL = typer.Argument(..., help="Folder of a model, or an exported .onnx file.")
MODEL_FOLDER = typer.Argument(..., help="Folder of a model.")
INDEX = typer.Argument(..., help="Folder of the index.")
INDEX_MODEL = typer.Option(
    None,
    "--model",
    help="Folder of a model, or an exported .onnx file. [default: the one the index remembers]",
)
STRICT = typer.Option(False, "--strict", help="Stop at an unreadable image.")
EXCLUDE = typer.Option(
    [],
    "--exclude",
    metavar="PATTERN",
    help="Files and folders to leave out, by name or path below the folder, such as '*.tmp' or "
    "2023/raw; may be repeated.",
)
IMAGE_COLUMN = typer.Option(
    None, "--image-column", help="Column of a table that holds the images. [default: by its name]"
)
LABEL_COLUMN = typer.Option(
    None, "--label-column", help="Column of a table that holds the labels. [default: by its name]"
)
VECTOR_COLUMN = typer.Option(
    None,
    "--vector-column",
    help="Column of a table that holds ready vectors, which take the place of images. [default: "
    "embedding, if there are no images]",
)
JSON = typer.Option(False, "--json", help="Print the result as one JSON object.")


def tell(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as one JSON object, or as text."""
    typer.echo(json.dumps(result) if as_json else text)


def note(line: str) -> None:
    """Print a line that is no result, on standard error."""
    typer.echo(line, err=True)
