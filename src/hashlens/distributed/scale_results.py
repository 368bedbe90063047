"""From measurements to a checked model and plans: all figures of ``hashlens bench shards``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hashlens.distributed.scale import (
    CODE_BYTES,
    CostModel,
    Machine,
    Observation,
    fewest_shards,
    fit,
    plan,
    quickest_shards,
)
from hashlens.distributed.scale_runs import measure, merge_times, record_bytes

COUNTS = (1, 2, 4, 8)
SIZES = (10**8, 10**9, 10**10)
FEATURE_DIM = 512


def run(
    folder: Path,
    size: int,
    check: int,
    cores: int,
    report: Callable[[str], None],
    *,
    counts: Sequence[int] = COUNTS,
) -> dict[str, Any]:
    """Measure below ``folder``, fit, check and plan.

    Parameters
    ----------
    folder : Path
        Where the shards are made, or lie already.
    size, check : int
        Images a shard: the larger of two sizes that are fitted, and that of the check.
    cores : int
        Of this machine.
    report : callable
        Given a line for each measurement.
    counts : sequence of int
        Numbers of shards; all but the first are checked.
    """
    fitted_on = measure(folder, counts, (size // 8, size), report)
    model = fit(fitted_on, cores)
    checked = measure(folder, counts[1:], (check,), report)
    record = record_bytes(folder / f"images-{size}" / "shard-0000")
    image_bytes = CODE_BYTES + 2 * FEATURE_DIM + record
    return {
        "cores": cores,
        "fitted_on": [_row(o) for o in fitted_on],
        "model": asdict(model),
        "checked_on": [{**_row(o), **_check(o, model, cores)} for o in checked],
        "merge": [{"shards": s, "ms": ms} for s, ms in merge_times((*counts, 32, 128)).items()],
        "record_bytes": record,
        "image_bytes": image_bytes,
        "machine": asdict(Machine()),
        "plans": plans(model, Machine(), image_bytes),
    }


def plans(model: CostModel, machine: Machine, image_bytes: float) -> list[dict[str, Any]]:
    """For each size: the fewest machines, and as many as answer quickest."""
    rows = []
    for images in SIZES:
        fewest = fewest_shards(model, machine, images, image_bytes)
        aims = {"fewest": fewest, "quickest": max(fewest, quickest_shards(model, machine, images))}
        for aim, shards in aims.items():
            made = plan(
                model, machine, images, shards, feature_dim=FEATURE_DIM, image_bytes=image_bytes
            )
            rows.append(
                {
                    **asdict(made),
                    "aim": aim,
                    "machines": made.shards * made.replicas,
                    "each": images / shards,
                    "query_ms": made.query_ms,
                }
            )
    return rows


def _row(seen: Observation) -> dict[str, Any]:
    return {**asdict(seen), "resident_mb": seen.resident / 1e6}


def _check(seen: Observation, model: CostModel, cores: int) -> dict[str, float]:
    coarse = model.coarse(seen.shards, seen.images_per_shard, cores)
    predicted = coarse + model.fine(seen.shards) + model.records(seen.shards)
    whole = seen.coarse + seen.fine + seen.records
    return {
        "whole": whole,
        "predicted_whole": predicted,
        "error": predicted / whole - 1,
        "predicted_coarse": coarse,
        "coarse_error": coarse / seen.coarse - 1,
        "predicted_resident_mb": model.resident(seen.images_per_shard) / 1e6,
    }
