"""``hashlens look``: a folder of photographs as a search page, in one command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from hashlens.cli.opening import passed_over, show_skipped
from hashlens.cli.options import EXCLUDE, note
from hashlens.cli.serve import serve_index


def look_command(
    folder: str = typer.Argument(..., help="Folder of images, in sub-folders or not."),
    out: Path | None = typer.Option(
        None, help="Folder for model and index. [default: FOLDER.hashlens, next to it]"
    ),
    no_labels: bool = typer.Option(
        False, "--no-labels", help="Do not take sub-folders for classes."
    ),
    exclude: list[str] = EXCLUDE,
    weights: Path | None = typer.Option(
        None, help="File with the network's first weights. [default: fetched once from the hub]"
    ),
    port: int = typer.Option(8080, min=0, max=65535, help="Port; 0 takes a free one."),
    browser: bool | None = typer.Option(
        None, "--browser/--no-browser", help="Open the page. [default: on a desktop]"
    ),
) -> None:
    """Look through a folder of photographs: one command from pictures to a search page.

    The first time it learns from the folder: its classes, where sub-folders name them, else from
    the pictures alone; it says which and why. After that it takes in what is new and opens the
    page in seconds. For codes that are better still, train with `hashlens train`.

    Example: hashlens look photos/
    """
    from hashlens.workflows.look import prepare_folder

    ready = prepare_folder(
        folder,
        out,
        use_labels=not no_labels,
        exclude=exclude,
        weights=weights,
        say=note,
        progress=True,
    )
    report = ready.synced.report
    show_skipped(report.skipped)
    counts = report._asdict() | {"skipped": len(report.skipped), "unchanged": 0}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    over = passed_over(ready.synced.listing.passed_over)
    typer.echo(f"{ready.index} holds {ready.images} images: {told or 'nothing new'}{over}")
    serve_index(
        ready.index, ready.model, port=port, browser=_desktop() if browser is None else browser
    )


def _desktop() -> bool:
    """Whether somebody sits before this machine's own screen."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return (
        os.name == "nt"
        or sys.platform == "darwin"
        or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    )
