"""``hashlens push`` and ``hashlens pull``: models to and from a hub."""

from __future__ import annotations

from pathlib import Path

import typer


def push_command(
    model: Path = typer.Argument(..., help="Folder of a model."),
    repo: str = typer.Argument(..., help="Repository on the hub, such as me/shop-codes."),
    endpoint: str | None = typer.Option(
        None, help="Address of the hub. [default: HF_ENDPOINT, or huggingface.co]"
    ),
    public: bool = typer.Option(False, "--public", help="A new repository is for all to see."),
) -> None:
    """Upload a model: description, weights and card, nothing else of the folder.

    Example: hashlens push model/ me/shop-codes
    """
    from hashlens.models.hub import push_model

    typer.echo(push_model(model, repo, endpoint=endpoint, private=not public))


def pull_command(
    repo: str = typer.Argument(..., help="Repository on the hub, such as me/shop-codes."),
    out: Path = typer.Option(..., "--out", help="Folder of the model."),
    revision: str | None = typer.Option(None, help="Branch, tag or commit. [default: main]"),
    endpoint: str | None = typer.Option(
        None, help="Address of the hub. [default: HF_ENDPOINT, or huggingface.co]"
    ),
) -> None:
    """Download a model; a model in --out is replaced once the new one is whole.

    Example: hashlens pull me/shop-codes --out model/
    """
    from hashlens.models.hub import pull_model

    pull_model(repo, out, revision=revision, endpoint=endpoint)
    typer.echo(f"{out}: model of {repo}")
