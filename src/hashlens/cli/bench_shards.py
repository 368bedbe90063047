"""``hashlens bench shards``: what a search over shards costs, and would cost at other sizes."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import typer


def shards_command(
    folder: Path | None = typer.Option(
        None, help="Where the shards are made and kept; by default a folder that is removed."
    ),
    size: int = typer.Option(
        1_000_000, min=8000, help="Images in the larger shards that the model is fitted on."
    ),
    check: int = typer.Option(
        4_000_000, min=1000, help="Images in the shards that check the model's prediction."
    ),
    address: str | None = typer.Option(None, "--ray", help="Address of the Ray cluster, or local."),
    out: Path | None = typer.Option(None, help="Folder for shards.md, shards.png and shards.json."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as one JSON object."),
) -> None:
    """Measure search over 1 to 8 shards, fit a model of its time, and check it on a larger run.

    Eight shards of the larger size take about 200 bytes an image on disk, 6.5 GB by default.

    Example: hashlens bench shards --out results/
    """
    from hashlens.benchmarks.timing import environment
    from hashlens.distributed.cluster import connect
    from hashlens.distributed.scale_report import text, write
    from hashlens.distributed.scale_results import run

    ray = connect(address)

    def report(line: str) -> None:
        typer.echo(line, err=True)

    cores = os.cpu_count() or 1
    if folder is not None:
        results = run(folder.absolute(), size, check, cores, report)
    else:
        with tempfile.TemporaryDirectory() as made:
            results = run(Path(made), size, check, cores, report)
    results["environment"] = environment(cores)
    results["environment"]["versions"]["ray"] = ray.__version__
    if out is not None:
        page = write(results, out, f"hashlens bench shards --size {size} --check {check}")
        typer.echo(f"page: {page}", err=True)
    typer.echo(json.dumps(results) if as_json else text(results))
