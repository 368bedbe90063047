"""The search benchmark: fair turns, true recall, and a page with every table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hamming_reference as reference
from hashlens.bench import search
from hashlens.bench.search import Workload, clustered_codes
from hashlens.bench.timing import MIN_ROUNDS, interleaved
from hashlens.cli.main import app

TINY = Workload(n=5000, bits=(64, 128), batches=(1, 32), ks=(10,), seconds=0.01)


def test_contestants_take_turns() -> None:
    played: list[str] = []
    timings = interleaved(
        {"a": lambda: played.append("a"), "b": lambda: played.append("b")}, 2, 0.0
    )
    assert played == ["a", "b"] * (1 + MIN_ROUNDS)
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 3, "b": 3}
    assert all(0 < timing.minimum <= timing.median for timing in timings.values())


def test_codes_lie_around_their_class_centres() -> None:
    codes = clustered_codes(3000, 128, seed=1)
    others = clustered_codes(100, 128, seed=1, stream=1)
    assert codes.shape == (3000, 16)
    np.testing.assert_array_equal(codes, clustered_codes(3000, 128, seed=1))
    between = reference.distances(codes, others)
    near = between.min(axis=1)  # the same class: two flips of a tenth each, 23 bits expected
    assert 15 < near.mean() < 30
    assert 55 < between.mean() < 70


@pytest.mark.parametrize("data", search.KINDS)
def test_codes_of_every_kind_are_drawn_by_seed(data: str) -> None:
    make = search.KINDS[data]
    codes, others = make(40_000, 48, 1), make(100, 48, 1, stream=1)
    np.testing.assert_array_equal(codes, make(40_000, 48, 1))
    near = reference.distances(codes, others).min(axis=1).mean()
    low, high = {"clustered": (3, 7), "repeated": (0, 1), "ITQ": (1, 8), "uniform": (8, 13)}[data]
    assert low <= near < high, near


def test_command_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    monkeypatch.setattr(Workload, "quick", lambda _: TINY)
    monkeypatch.setattr(search, "warm_up", lambda _: None)
    command = ["bench", "search", "--quick", "--json", "--out", str(tmp_path)]
    answer = CliRunner().invoke(app, command, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout)
    stored = json.loads((tmp_path / "search.json").read_text())
    assert stored.pop("command") == "hashlens bench search --quick --seed 0"
    assert stored == results
    engines = {row["engine"] for row in results["exact"]}
    assert engines == {
        search.FLAT,
        search.COUNTING,
        search.SHARDS,
        search.SCAN,
        search.USEARCH,
        search.ARRAY,
        search.DATABASE,
    }
    page = (tmp_path / "search.md").read_text()
    assert all(engine in page for engine in engines)
    assert "hashlens bench search --quick" in page
    assert (tmp_path / "search.png").stat().st_size > 10_000
