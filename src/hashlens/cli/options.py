"""Options that several commands share, and the one way in which commands answer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import typer

if TYPE_CHECKING:
    from hashlens.types import Skipped


class Answer(NamedTuple):
    """What a command says: one JSON object with ``--json``, else a text."""

    result: dict[str, Any]
    text: str
    skipped: Sequence[Skipped] | None = None  # part of the object; next to the text, a line each
    failed: bool = False  # exit code 1


Command: TypeAlias = Callable[..., Answer | None]

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
"""The options of ``open_source``."""


def commands(app: typer.Typer) -> Callable[[str], Callable[[Command], Command]]:
    """A decorator for the commands of an app, which takes a command's name.

    A parameter whose default is a dictionary, such as ``READING``, stands for a group of options,
    and gets their values by name. A command that returns an ``Answer`` gets ``--json`` as well.
    """
    return lambda name: lambda command: app.command(name)(_answering(command))


def _answering(command: Command) -> Command:
    """A command with its groups spread out, which prints its answer."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Mapping[str, Any]] = {}
    for one in inspect.signature(command).parameters.values():
        if isinstance(one.default, dict):
            groups[one.name] = one.default
        options = groups.get(one.name, {one.name: (one.annotation, one.default)})
        parameters += [
            one.replace(name=name, annotation=kind, default=option)
            for name, (kind, option) in options.items()
        ]
    if "Answer" in command.__annotations__["return"]:
        parameters.append(parameters[0].replace(name="as_json", annotation=bool, default=JSON))

    @wraps(command)
    def run(*, as_json: bool = False, **values: Any) -> None:
        held = {group: {name: values.pop(name) for name in groups[group]} for group in groups}
        answer = command(**held, **values)
        if answer is None:
            return
        result, skipped = answer.result, answer.skipped
        if skipped is not None:
            result |= {"skipped": [{"name": one.name, "reason": one.reason} for one in skipped]}
            show_skipped([] if as_json else skipped)
        typer.echo(json.dumps(result) if as_json else answer.text)
        if answer.failed:
            raise typer.Exit(1)

    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


_SKIPPED_SHOWN = 20


def show_skipped(skipped: Sequence[Skipped]) -> None:
    """List unreadable images on standard error."""
    for image in skipped[:_SKIPPED_SHOWN]:
        note(f"skipped {image.name}: {image.reason}")
    if len(skipped) > _SKIPPED_SHOWN:
        note(f"skipped {len(skipped) - _SKIPPED_SHOWN} more; --json lists all")


def note(line: str) -> None:
    """Print a line that is no result, on standard error."""
    typer.echo(line, err=True)
