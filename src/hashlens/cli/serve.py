"""``hashlens serve``: the search page and the HTTP API over one index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from hashlens.cli.opening import open_index, remembered_model
from hashlens.cli.options import INDEX, INDEX_MODEL, note
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
) -> None:
    """Open the search page and the HTTP API over an index.

    Every option can be set by the environment too, --port by HASHLENS_PORT.

    Example: hashlens serve shop.idx --port 8080
    """
    serve_index(
        index, model, host=host, port=port, api_key_file=api_key_file, show_files=show_files
    )


def serve_index(
    index: Path,
    model: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key_file: Path | None = None,
    show_files: bool | None = None,
    browser: bool = False,
) -> None:
    """Serve an index until it is stopped; print the address, and open it in a browser."""
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
        encoder = cast("Encoder | None", opened.encoder)
        names = LOOPBACK if host in LOOPBACK else None
        limits = Limits()
        app = create_app(
            opened,
            encoder,
            limits,
            api_key=key,
            host_names=names,
            show_files=host in LOOPBACK if show_files is None else show_files,
        )

        def announce(url: str) -> None:
            typer.echo(f"Serving {index} at {url}")
            if browser:
                import webbrowser

                webbrowser.open(url)

        serve(app, host, port, limits, announce)
