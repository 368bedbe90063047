"""``hashlens bench shards``: what a search over shards costs, and would cost at other sizes."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

_PLANS = ((10**8, 4), (10**9, 20), (10**10, 200))
_NODE_CORES = 16
_POOL = 1000


def shards_command(
    folder: Path | None = typer.Option(
        None, help="Where the shards are made and kept; by default a folder that is removed."
    ),
    size: int = typer.Option(
        100_000, min=1000, help="Images in the larger shards that the model is fitted on."
    ),
    check: int = typer.Option(
        400_000, min=1000, help="Images in the shards that check the model's prediction."
    ),
    address: str | None = typer.Option(None, "--ray", help="Address of the Ray cluster, or local."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as one JSON object."),
) -> None:
    """Measure search over 1 to 8 shards, fit a model of its time, and check it on a larger run.

    Example: hashlens bench shards --size 100000 --check 400000
    """
    from hashlens.distributed.cluster import connect

    connect(address)
    if folder is not None:
        result = _measure(folder.absolute(), size, check)
    else:
        with tempfile.TemporaryDirectory() as made:
            result = _measure(Path(made), size, check)
    typer.echo(json.dumps(result) if as_json else _text(result))


def _measure(folder: Path, size: int, check: int) -> dict[str, Any]:
    from hashlens.distributed.scale import fit, measure

    def report(line: str) -> None:
        typer.echo(line, err=True)

    cores = os.cpu_count() or 1
    counts = (1, 2, 4, 8)
    fitted_on = measure(folder, counts, (size // 4, size), report)
    model = fit(fitted_on, cores)
    checked = measure(folder, (4, 8), (check,), report)
    return {
        "cores": cores,
        "fitted_on": [asdict(o) for o in fitted_on],
        "model": asdict(model),
        "checked_on": [
            {
                **asdict(o),
                "predicted_coarse": model.coarse(o.shards, o.images_per_shard, cores),
                "predicted_fine": model.fine(o.shards),
            }
            for o in checked
        ],
        "plans": [
            _plan(
                images,
                nodes,
                model.base,
                model.per_shard,
                model.per_image * cores,
                model.fine(nodes),
            )
            for images, nodes in _PLANS
        ],
    }


def _plan(
    images: int, nodes: int, base: float, per_shard: float, core_image: float, fine: float
) -> dict[str, Any]:
    """A cluster of ``nodes`` machines with one shard each, 64-bit codes, 512-d features."""
    here = images / nodes
    scan = core_image * here / _NODE_CORES
    return {
        "images": images,
        "nodes": nodes,
        "cores_per_node": _NODE_CORES,
        "codes_gb_per_node": 8 * here / 1e9,
        "features_gb_per_node": 1024 * here / 1e9,
        "coarse_ms": base + per_shard * nodes + scan,
        "fine_ms": fine,
        "merge_kb_per_query": nodes * _POOL * 10 / 1e3,
        "rows_read_per_node": _POOL / nodes,
        "queries_per_second": 1e3 / scan,
    }


def _text(result: dict[str, Any]) -> str:
    lines = ["shards  images each  coarse ms  predicted  fine ms  predicted"]
    for o in result["checked_on"]:
        lines.append(
            f"{o['shards']:>6}  {o['images_per_shard']:>11,}  {o['coarse']:>9.2f}  "
            f"{o['predicted_coarse']:>9.2f}  {o['fine']:>7.2f}  {o['predicted_fine']:>9.2f}"
        )
    model = result["model"]
    lines.append(
        f"coarse = {model['base']:.2f} + {model['per_shard']:.2f} S + "
        f"{1e6 * model['per_image']:.2f}e-6 n S / min(S, {result['cores']}) ms;  "
        f"fine = {model['fine_base']:.2f} + {model['fine_per_shard']:.2f} S ms"
    )
    for p in result["plans"]:
        lines.append(
            f"{p['images']:.0e} images on {p['nodes']} nodes of {p['cores_per_node']} cores: "
            f"coarse {p['coarse_ms']:.1f} ms, fine {p['fine_ms']:.1f} ms, codes "
            f"{p['codes_gb_per_node']:.1f} GB and features {p['features_gb_per_node']:.0f} GB a "
            f"node, merge {p['merge_kb_per_query']:.0f} kB a query"
        )
    return "\n".join(lines)
