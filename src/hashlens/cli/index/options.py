"""What commands on an index have in common: arguments, options, the answer."""

from __future__ import annotations

import json
from typing import Any

import typer

INDEX = typer.Argument(..., help="Folder of the index.")
SOURCES = typer.Argument(
    None,
    metavar="SOURCE",
    help="Image files, class folders, parquet files, FOLDER#PART, digits or hub names.",
)
MODEL = typer.Option(
    None, help="Model directory or .onnx file; by default the one the index remembers."
)
STRICT = typer.Option(False, "--strict", help="Stop at an unreadable image.")
METADATA = typer.Option([], "--metadata", help="key=value for all these images.")
JSON = typer.Option(False, "--json", help="Print the result as one JSON object.")


def tell(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result as one JSON object, or as text."""
    typer.echo(json.dumps(result) if as_json else text)
