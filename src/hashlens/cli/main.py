"""The ``hashlens`` command: its groups, and how errors end it.

Exit codes: 0 done, 1 it could not be done, 2 wrong usage. A noun's module imports typer alone, and
what is heavy inside its commands.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from hashlens import __version__
from hashlens.cli import bench, evaluate, index, models, reproduce, search, serve
from hashlens.cli.options import commands
from hashlens.errors import HashlensError, MissingExtraError, system_reason

# The extra that brings a package which the base installation lacks.
_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "timm", "lightning", "safetensors"), "train"),
    **dict.fromkeys(("sklearn", "scipy", "matplotlib"), "train"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "multipart"), "serve"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    **dict.fromkeys(("datasets", "huggingface_hub"), "hub"),
    "pyarrow": "parquet", "fsspec": "remote", "open_clip": "clip", "tensorboard": "tensorboard",
    "ray": "ray", **dict.fromkeys(("faiss", "usearch"), "bench"),
}  # fmt: skip


class _ErrorGroup(TyperGroup):
    """Prints an expected error as one line on standard error and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HashlensError as error:
            typer.echo(f"error: {error}", err=True)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            missing = MissingExtraError(f"this command imports {package}; it", _EXTRAS[package])
            typer.echo(f"error: {missing}", err=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            reason = system_reason(error)
            message = f"{name}{reason}; check the name, the permissions and the free space"
            typer.echo(f"error: {message}", err=True)
        except RecursionError:
            typer.echo("error: a file holds lists or objects nested without end", err=True)
        except KeyboardInterrupt:
            typer.echo("interrupted; what was finished is kept", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_ErrorGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Image search with learned binary codes. Start with: hashlens look photos/",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hashlens {__version__}")
        raise typer.Exit(0)


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and leave.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    pass


answering = commands(app)
answering("demo")(models.demo_command)
app.command("look")(serve.look_command)
# HASHLENS_PORT, HASHLENS_HOST, ...: a service often has its options from its environment.
app.command("serve", context_settings={"auto_envvar_prefix": "HASHLENS"})(serve.serve_command)
answering("train")(models.train_command)
app.add_typer(index.index_app, name="index")
app.command("search")(search.search_command)
answering("evaluate")(evaluate.evaluate_command)
answering("labels")(evaluate.labels_command)
answering("inspect")(evaluate.inspect_command)
app.add_typer(reproduce.reproduce_app, name="reproduce")
answering("export")(models.export_command)
app.add_typer(bench.bench_app, name="bench")
answering("push")(models.push_command)
answering("pull")(models.pull_command)


_show_as_usual = warnings.showwarning
_NOTES_SHOWN = 20
_notes_told = 0


def _show_warning(
    message: Warning | str, category: type[Warning], *where: Any, **rest: Any
) -> None:
    """What was guessed of an image as one line; all other warnings as they are."""
    global _notes_told
    if category.__name__ != "ImageWarning":
        _show_as_usual(message, category, *where, **rest)
        return
    _notes_told += 1
    if _notes_told <= _NOTES_SHOWN:
        typer.echo(f"note: {message}", err=True)
    elif _notes_told == _NOTES_SHOWN + 1:
        typer.echo("note: more images are like these; further ones are not named", err=True)


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow's word on what ``hashlens.data.image`` reads on purpose: large and damaged pictures.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.showwarning = _show_warning
    try:
        app()
    except BrokenPipeError:  # the reader, such as `head`, has left
        os._exit(0)
