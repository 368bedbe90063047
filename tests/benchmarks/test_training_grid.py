"""The comparison of trainings, and the source of many classes, on digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from digit_pairs import write_pairs
from hashlens import SourceError, open_source
from training_grid import main, table


def test_pairs_are_a_hundred_classes_of_two_digits(tmp_path: Path) -> None:
    digits = open_source("digits#train")
    write_pairs(digits, tmp_path / "pairs.parquet", per_class=2)
    pairs = open_source(str(tmp_path / "pairs.parquet"))
    assert len(pairs) == 200
    assert sorted(pairs.classes) == [f"{n:02d}" for n in range(100)]
    assert np.bincount(pairs.labels).tolist() == [2] * 100
    # The halves are digits of the source with these labels.
    for i in (0, 57, 199):
        whole = np.asarray(pairs.load(i))
        name = pairs.label_name(i)
        for place, half in enumerate((whole[:, :8], whole[:, 8:])):
            rows = np.flatnonzero(digits.labels == int(str(name)[place]))
            assert any((np.asarray(digits.load(int(row))) == half).all() for row in rows)
    with pytest.raises(SourceError, match="expected ten classes, got 100"):
        write_pairs(pairs, tmp_path / "more.parquet", per_class=1)


def test_a_grid_is_continued_and_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", "300", "--query-images", "100", "--objectives", "latent"]
    options += ["--bits", "16", "--seeds"]
    settings = ["--set", "epochs=8", "batch_size=32", "precision=fp32"]
    for seeds in (["0"], ["0", "1"]):
        arguments = ["digits#train", "--queries", "digits#test", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["grid", *arguments, *options, *seeds, *settings])
        main()
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["map@1000"] > 0.3 and 0 <= row["error"] < 0.7 for row in rows)
    assert "| auto | latent | 16 |" in capsys.readouterr().out
    # With another configuration a run is another one, and stands in another table.
    monkeypatch.setattr(
        sys, "argv", ["grid", *arguments, *options, "0", *settings, "learning_rate=0.1"]
    )
    main()
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
    assert capsys.readouterr().out.strip().endswith("| 1 |")


def test_table_shows_mean_and_spread() -> None:
    rows = [
        {"recipe": "r", "objective": "o", "bits": 8, "map@1000": value, "error": 0.5}
        for value in (0.1, 0.2, 0.3)
    ]
    assert "| r | o | 8 | 0.2000 ± 0.1000 | 0.5000 ± 0.0000 | 3 |" in table(rows)
