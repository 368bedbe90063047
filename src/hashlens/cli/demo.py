"""``hashlens demo``: the whole way on real images, without a download."""

from __future__ import annotations

from pathlib import Path

import typer


def demo_command(
    data: str = typer.Option(
        "digits", help="digits, mnist, cifar10, or a folder with a sub-folder a class."
    ),
    path: str | None = typer.Option(
        None,
        help="Where mnist or cifar10 lies. [default: in $HASHLENS_DATA, else fetched from the hub]",
    ),
    out: Path = typer.Option(Path("hashlens-demo"), help="Folder for model, index and report."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Train, index, evaluate and report on real images, in about a minute.

    Example: hashlens demo
    """
    import json

    from hashlens.workflows.demo import NEXT_COMMANDS, run_demo

    def say(line: str) -> None:
        typer.echo(line, err=True)

    result = run_demo(data, out, path=path, say=say, progress=True)
    if as_json:
        typer.echo(json.dumps(result.scored.to_dict(), ensure_ascii=False))
        return
    found = result.scored.evaluation
    typer.echo(f"\n{found.n_queries:,} held-out images searched {found.n_database:,}:\n")
    typer.echo(result.table().text())
    if found.classification_error is not None:
        typer.echo(f"\nclassification error {100 * found.classification_error:.2f} %")
    typer.echo(f"took {result.seconds:.0f} s; look at {result.page}")
    first = result.scored.query_uris[0]
    typer.echo(f"\nsearch it:       hashlens search {result.index} '{first}'")
    typer.echo(f"as a web page:   hashlens serve {result.index}")
    typer.echo(f"\nyour own photos, one sub-folder a class:\n\n{NEXT_COMMANDS}")
