"""The cost model recovers constants that made its observations, and plans what they imply."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from hashlens.bench.shards import (
    POOL,
    CostModel,
    Machine,
    Observation,
    fewest_shards,
    fit,
    make_shards,
    observe,
    plan,
    quickest_shards,
    run,
    shards_asked,
    write,
)

MADE_BY = CostModel(3.0, 0.5, 2e-5, 1.0, 0.25, 0.6, 0.2, 0.4, 0.3, 1.5e8, 32.0)


def _observations(model: CostModel, cores: int) -> list[Observation]:
    return [
        Observation(
            s,
            n,
            model.coarse(s, n, cores),
            model.fine(s),
            model.records(s),
            model.front_end(s),
            model.resident(n),
        )
        for s, n in product((1, 2, 4, 8), (10_000, 1_000_000))
    ]


def test_fit_recovers_the_constants() -> None:
    fitted = fit(_observations(MADE_BY, 2), 2)
    for name, value in vars(MADE_BY).items():
        assert getattr(fitted, name) == pytest.approx(value), name


def test_a_scan_too_quick_to_be_seen_is_no_error() -> None:
    unseen = replace(MADE_BY, scan=0.0)
    model = fit(_observations(unseen, 2), 2)
    made = plan(model, Machine(), 10**9, 4, image_bytes=1100)
    # memory's bandwidth still bounds it: 2.5e8 codes of 8 bytes at 200 GB/s
    assert made.scan_ms == pytest.approx(10)


def test_images_lie_in_as_many_shards_as_chance_says() -> None:
    assert shards_asked(1, 10) == 1
    assert shards_asked(2, 1) == 1
    assert shards_asked(2, 2) == pytest.approx(1.5)
    assert shards_asked(8, POOL) == pytest.approx(8)


def test_plans_hold_the_images_and_the_quickest_is_quickest() -> None:
    machine = Machine()
    for images in (10**8, 10**9, 10**10):
        fewest = fewest_shards(MADE_BY, machine, images, 1100)
        made = plan(MADE_BY, machine, images, fewest, image_bytes=1100)
        assert made.memory_gb <= 0.8 * machine.memory_gb
        assert made.disk_tb <= machine.disk_tb
        if fewest > 1:
            crowded = plan(MADE_BY, machine, images, fewest - 1, image_bytes=1100)
            over = crowded.memory_gb > 0.8 * machine.memory_gb
            assert over or crowded.disk_tb > machine.disk_tb

    def query_ms(shards: int) -> float:
        return plan(MADE_BY, machine, 10**9, shards, image_bytes=1100).query_ms

    best = quickest_shards(MADE_BY, machine, 10**9)
    assert query_ms(best) <= min(query_ms(best // 2), query_ms(2 * best))


def test_shards_are_made_once_and_observed(cluster: Any, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 2, 1500)
    assert make_shards(tmp_path, 2, 1500) == shards
    for seen, count in zip(observe(tmp_path, shards, (1, 2)), (1, 2), strict=True):
        assert (seen.shards, seen.images_per_shard) == (count, 1500)
        assert min(seen.coarse, seen.fine, seen.records, seen.front_end) > 0
        assert 1e7 < seen.resident < 1e10


def test_the_whole_run_is_written_as_a_page(cluster: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    results = run(tmp_path / "shards", 8000, 9000, lines.append, counts=(1, 2))
    assert len(lines) == len(results["fitted_on"]) + len(results["checked_on"]) == 5
    for row in results["checked_on"]:
        assert row["error"] == pytest.approx(row["predicted_whole"] / row["whole"] - 1)
    page = write(results, tmp_path / "out", "the command")
    assert "Made by `the command`" in page.read_text()
    figures = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert figures["plans"] == results["plans"]
    assert (tmp_path / "out" / "shards.png").stat().st_size > 1000
