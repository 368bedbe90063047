"""Options that several commands share, and the one way in which they print a result."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias

import typer

Command: TypeAlias = Callable[..., None]

MODEL = typer.Argument(..., help="Folder of a model, or an exported .onnx file.")
MODEL_FOLDER = typer.Argument(..., help="Folder of a model.")
INDEX = typer.Argument(..., help="Folder of the index.")
INDEX_MODEL = typer.Option(
    None,
    "--model",
    help="Folder of a model, or an exported .onnx file. [default: the one the index remembers]",
)
EXCLUDE = typer.Option(
    [],
    "--exclude",
    metavar="PATTERN",
    help="Files and folders to leave out, by name or path below the folder, such as '*.tmp' or "
    "2023/raw; may be repeated.",
)
STRICT = typer.Option(False, "--strict", help="Stop at an unreadable image.")
JSON = typer.Option(False, "--json", help="Print the result as one JSON object.")


def _column(name: str, holds: str, default: str) -> Any:
    help = f"Column of a table that holds {holds}. [default: {default}]"
    return typer.Option(None, f"--{name}-column", help=help)


READING = {
    "exclude": (list[str], EXCLUDE),
    "image_column": (str | None, _column("image", "the images", "by its name")),
    "label_column": (str | None, _column("label", "the labels", "by its name")),
    "vector_column": (
        str | None,
        _column(
            "vector",
            "ready vectors, which take the place of images",
            "embedding, if there are no images",
        ),
    ),
    "strict": (bool, STRICT),
}

GROUP: dict[str, Any] = {}
"""Stands where ``takes`` puts the options of a group."""


def takes(**groups: Mapping[str, tuple[Any, Any]]) -> Callable[[Command], Command]:
    """Give a command groups of options (type and option by name).

    Each takes the place of the parameter of its name, and reaches the command as a dictionary.
    """

    def given(command: Command) -> Command:
        signature, annotations = inspect.signature(command), dict(command.__annotations__)
        parameters = []
        for one in signature.parameters.values():
            if one.name not in groups:
                parameters.append(one)
                continue
            del annotations[one.name]
            for name, (kind, option) in groups[one.name].items():
                parameters.append(one.replace(name=name, default=option, annotation=kind))
                annotations[name] = kind

        @wraps(command)
        def run(**values: Any) -> None:
            held = {group: {name: values.pop(name) for name in groups[group]} for group in groups}
            command(**held, **values)

        run.__annotations__ = annotations
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return given


reads_sources = takes(reading=READING)
"""Gives a command the options of ``open_source``, in place of its parameter ``reading``."""


def tell(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as one JSON object, or as text."""
    typer.echo(json.dumps(result) if as_json else text)


def note(line: str) -> None:
    """Print a line that is no result, on standard error."""
    typer.echo(line, err=True)
