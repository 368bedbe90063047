"""``hashlens bench``: how fast, beside other libraries, in one run."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.bench_encode import encode_command
from hashlens.cli.bench_shards import shards_command

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure speed beside other libraries.", rich_markup_mode=None
)


@bench_app.callback()
def _bench() -> None:
    pass


@bench_app.command("search")
def search_command(
    quick: bool = typer.Option(False, "--quick", help="Fewer and smaller cells: about a minute."),
    full: bool = typer.Option(
        False, "--full", help="Up to 100 million codes, and 1,124,087 in every index."
    ),
    part: list[str] = typer.Option(
        [], help="exact, recall, growth or features; may be repeated. By default all."
    ),
    out: Path | None = typer.Option(None, help="Folder for search.md, search.png and search.json."),
    seed: int = typer.Option(0, help="Of all data."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as one JSON object."),
) -> None:
    """Time Hamming search beside FAISS and USearch.

    Exact engines over 1,124,087 clustered codes, taking turns in the same run with the same
    threads; approximate indexes by speed and recall; growth with the number of codes; exhaustive
    search over 4096-d features against binary codes.

    Example: hashlens bench search --quick --out results/
    """
    from hashlens.benchmarks.search_report import text, write
    from hashlens.benchmarks.search_speed import PARTS, Plan, run

    if quick and full:
        raise typer.BadParameter("give --quick or --full, not both")
    if not set(part) <= set(PARTS):
        raise typer.BadParameter(f"--part: expected one of {', '.join(PARTS)}, got {part}")
    plan = Plan(seed=seed)
    plan = plan.quick() if quick else plan.full() if full else plan
    results = run(plan, lambda line: typer.echo(line, err=True), part or PARTS)
    if out is not None:
        option = " --quick" if quick else " --full" if full else ""
        option += "".join(f" --part {name}" for name in part)
        page = write(results, out, f"hashlens bench search{option} --seed {seed}")
        typer.echo(f"page: {page}", err=True)
    typer.echo(json.dumps(results) if as_json else text(results))


bench_app.command("encode")(encode_command)
bench_app.command("shards")(shards_command)
