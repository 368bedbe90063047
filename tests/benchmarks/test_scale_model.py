"""The cost model recovers constants that made its observations, and plans what they imply."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from hashlens.bench.shards import POOL, Observation
from scale_model import (
    CostModel,
    Machine,
    fewest_shards,
    fit,
    main,
    plan,
    quickest_shards,
    shards_asked,
)

MADE_BY = CostModel(3.0, 0.5, 2e-5, 1.0, 0.25, 0.6, 0.2, 0.4, 0.3, 150.0, 3.2e-5)


def _observations(
    model: CostModel, cores: int, sizes: tuple[int, ...] = (10_000, 1_000_000)
) -> list[Observation]:
    return [
        Observation(
            s,
            n,
            model.coarse(s, n, cores),
            model.fine(s),
            model.records(s),
            model.front_end(s),
            model.resident_mb(n),
        )
        for s, n in product((1, 2, 4, 8), sizes)
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


def test_figures_give_a_page_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = tmp_path / "shards.json", tmp_path / "scale.png"
    rows = [asdict(seen) for seen in _observations(MADE_BY, 2, sizes=(10_000, 10**6, 4 * 10**6))]
    values = {"measured": rows, "record_bytes": 67.0, "environment": {"cores": 2}}
    figures.write_text(json.dumps(values))
    monkeypatch.setattr(sys, "argv", ["scale_model", str(figures), "--plot", str(picture)])
    main()
    page = capsys.readouterr().out
    assert "- coarse = 3.00 + 0.50 S + " in page
    checked = page[page.index("## Predicted") : page.index("## Plans")]
    assert checked.count("+0% |") + checked.count("-0% |") == 8
    assert picture.stat().st_size > 1000
