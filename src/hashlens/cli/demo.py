"""``hashlens demo``: from real images to a report, without a download."""

from __future__ import annotations

from pathlib import Path

import typer

from hashlens.cli.options import JSON, note, tell


def demo_command(
    data: str = typer.Option(
        "digits", help="digits, mnist, cifar10, or a folder with one sub-folder per class."
    ),
    path: str | None = typer.Option(
        None,
        help="Folder of mnist or cifar10. [default: in $HASHLENS_DATA, else fetched from the hub]",
    ),
    out: Path = typer.Option(Path("hashlens-demo"), help="Folder for model, index and report."),
    as_json: bool = JSON,
) -> None:
    """Train, index, evaluate and report on real images, in about a minute.

    Example: hashlens demo
    """
    from hashlens.workflows.demo import NEXT_COMMANDS, run_demo

    result = run_demo(data, out, path=path, say=note, progress=True)
    found = result.scored.evaluation
    lines = [
        f"\n{found.n_queries:,} held-out images searched {found.n_database:,}:\n",
        result.table().text(),
    ]
    if found.classification_error is not None:
        lines.append(f"\nclassification error {100 * found.classification_error:.2f} %")
    lines += [
        f"took {result.seconds:.0f} s; report: {result.page}",
        f"\nsearch it:       hashlens search {result.index} '{result.scored.queries.uris[0]}'",
        f"as a web page:   hashlens serve {result.index}",
        f"\nyour own photos, one sub-folder per class:\n\n{NEXT_COMMANDS}",
    ]
    tell(result.scored.to_dict(), "\n".join(lines), as_json)
