"""Approximate indexes and growth: true recall, and a page with every table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import search_scale
from search_scale import Plan, _found, main


def test_recall_counts_ties_once_and_no_foreign_ids() -> None:
    codes = np.zeros((20, 2), np.uint8)
    codes[15:] = 255
    queries, reach = np.zeros((1, 2), np.uint8), np.zeros(1, np.uint16)
    right = np.arange(3, 13)[None]
    assert _found(codes, queries, right, reach) == 1.0
    half_wrong = np.array([[0, 1, 2, 3, 4, 15, 16, 17, 18, 19]])
    assert _found(codes, queries, half_wrong, reach) == 0.5
    repeated = np.array([[7, 7, 7, 7, 7, 7, 7, -1, -1, 25]])
    assert _found(codes, queries, repeated, reach) == 0.1


def test_a_page_is_made_of_the_parts_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    tiny = Plan(n=3000, sizes=(1000, 2000), seconds=0.01)
    monkeypatch.setattr(Plan, "quick", lambda _: tiny)
    monkeypatch.setattr(search_scale, "warm_up", lambda _: None)
    main(["--quick", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "search-scale.json").read_text())
    exact = [row for row in results["recall"] if row["setting"] == "exact"]
    assert [row["recall"] for row in exact] == [1.0] * 4  # two engines, in batches and alone
    assert all(0 <= row["recall"] <= 1 for row in results["recall"])
    page = (tmp_path / "search-scale.md").read_text()
    assert all(row["engine"] in page for row in (*results["recall"], *results["growth"]))
    assert "search_scale.py --part recall --part growth --quick --seed 0" in page
    assert (tmp_path / "search-scale.png").stat().st_size > 10_000

    main(["--quick", "--part", "growth", "--out", str(tmp_path)])
    one = json.loads((tmp_path / "search-scale.json").read_text())
    assert set(one) == {"plan", "environment", "growth", "command"}


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", "--full", "--out", str(tmp_path)])
    assert "not allowed with argument" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--part", "all", "--out", str(tmp_path)])
    assert "invalid choice: 'all'" in capsys.readouterr().err
