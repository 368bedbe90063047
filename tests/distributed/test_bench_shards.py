"""``hashlens bench shards``: shards are made once, measured, and shown on a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hashlens.bench.shards import make_shards, observe, run, write


def test_shards_are_made_once_and_observed(cluster: Any, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 2, 1500)
    assert make_shards(tmp_path, 2, 1500) == shards
    for seen, count in zip(observe(tmp_path, shards, (1, 2)), (1, 2), strict=True):
        assert (seen.shards, seen.images_per_shard) == (count, 1500)
        assert min(seen.coarse, seen.fine, seen.records, seen.front_end) > 0
        assert 10 < seen.resident_mb < 10_000


@pytest.mark.slow
def test_the_whole_run_is_written_as_a_page(cluster: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    results = run(tmp_path / "shards", 8000, 9000, lines.append, counts=(1, 2))
    assert len(lines) == len(results["measured"]) == 5
    page = write(results, tmp_path / "out", "the command")
    assert "Made by `the command`" in page.read_text()
    figures = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert figures == {**results, "command": "the command"}
    assert (tmp_path / "out" / "shards.png").stat().st_size > 1000
