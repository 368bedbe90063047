"""``hashlens serve`` and ``look``: the search page over an index, or over a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from hashlens.cli.opening import open_index, passed_over, remembered_model
from hashlens.cli.options import EXCLUDE, INDEX, INDEX_MODEL, note, show_skipped
from hashlens.service.limits import KEY_VARIABLE, Limits, read_key

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder


def serve_command(
    index: Path = INDEX,
    model: Path | None = INDEX_MODEL,
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines in."
    ),
    port: int = typer.Option(8080, min=0, max=65535, help="Port; 0 takes a free one."),
    api_key_file: Path | None = typer.Option(
        None,
        help=f"File with the key for adding and removing images; or set {KEY_VARIABLE}. Without "
        "a key the service is read-only.",
    ),
    show_files: bool | None = typer.Option(
        None,
        "--show-files/--hide-files",
        help="Tell the paths of images and open their files. [default: on this machine's own "
        "address]",
    ),
    browser: bool = typer.Option(False, "--browser", help="Open the page in a browser."),
) -> None:
    """Open the search page and the HTTP API over an index.

    Every option can be set by the environment too, --port by HASHLENS_PORT.

    Example: hashlens serve shop.idx --port 8080
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched for a client
    key = read_key(api_key_file)
    if api_key_file is not None and os.name != "nt" and os.stat(api_key_file).st_mode & 0o077:
        note(f"warning: {api_key_file} can be read by others: chmod 600 {api_key_file}")
    from hashlens.service.app import create_app
    from hashlens.service.security import LOOPBACK
    from hashlens.service.server import serve

    knows_model = model is not None or remembered_model(index) is not None
    if not knows_model:
        note("no model known: searching by id only; name one with --model")
    with open_index(
        index, model, encode=knows_model, read_only=key is None, require_all=False
    ) as opened:
        here = host in LOOPBACK
        app = create_app(
            opened,
            cast("Encoder | None", opened.encoder),
            api_key=key,
            host_names=LOOPBACK if here else None,
            show_files=here if show_files is None else show_files,
        )

        def announce(url: str) -> None:
            typer.echo(f"Serving {index} at {url}")
            if browser:
                import webbrowser

                webbrowser.open(url)

        serve(app, host, port, Limits(), announce)


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
    counts = report._asdict() | {"skipped": len(report.skipped)}
    del counts["unchanged"]
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    over = passed_over(ready.synced.listing.passed_over)
    typer.echo(f"{ready.index} holds {ready.images} images: {told or 'nothing new'}{over}")
    opens = _desktop() if browser is None else browser
    given: dict[str, Any] = {"api_key_file": None, "show_files": None, "browser": opens}
    serve_command(ready.index, ready.model, "127.0.0.1", port, **given)


def _desktop() -> bool:
    """Whether somebody sits before this machine's own screen."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return os.name == "nt" or sys.platform == "darwin" or any(map(os.environ.get, names))
