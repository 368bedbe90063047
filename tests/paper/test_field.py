"""The comparison of methods on one network: kept cells, unseen classes, other labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hashlens.cli.main import app

FIELD = ["reproduce", "field", "digits#train", "digits#test", "--backbone", "smallcnn",
         "--size", "16", "--bits", "16", "--seeds", "1", "--epochs", "1"]  # fmt: skip


def _field(out: Path, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*FIELD, "--out", str(out), "--json", *more])
    assert result.exit_code == 0, result.output
    cells = json.loads(result.stdout.splitlines()[-1])["results"]
    return {cell["method"]: cell for cell in cells}


def test_methods_are_scored_on_one_network_and_kept(tmp_path: Path) -> None:
    first = _field(tmp_path, "--methods", "latent,ITQ,features")
    assert set(first) == {"latent", "ITQ", "features"}
    assert set(first["latent"]["ways"]) == {"bcs"}
    assert set(first["features"]["ways"]) == {"es"}
    for cell in first.values():
        assert 0.15 < cell["validation"] <= 1  # chance is 0.1
    again = _field(tmp_path, "--methods", "latent,ITQ,features")
    assert again == first  # seconds too: nothing was measured again
    assert "3 of 3 cells" in (tmp_path / "report.md").read_text()
    more = _field(tmp_path, "--methods", "LSH,ITQ")
    assert more["ITQ"] == first["ITQ"]


def test_unseen_classes_are_searched_by_codes_latent_values_and_features(tmp_path: Path) -> None:
    cells = _field(tmp_path, "--methods", "latent,ITQ", "--unseen", "2")
    assert set(cells["latent"]["ways"]) == {"bcs", "acs", "es"}
    assert set(cells["ITQ"]["ways"]) == {"bcs", "es"}
    seen = _field(tmp_path, "--methods", "latent,ITQ")
    for name, cell in cells.items():
        assert cell["ways"]["bcs"]["map@all"] != seen[name]["ways"]["bcs"]["map@all"]


def test_a_method_that_is_not_known_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*FIELD, "--out", str(tmp_path), "--methods", "nothing"])
    assert result.exit_code == 1
    assert "expected some of" in result.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_a_fine_tuned_network_gives_shallow_methods_its_features(tmp_path: Path) -> None:
    frozen = _field(tmp_path, "--methods", "latent,ITQ")
    tuned = _field(tmp_path, "--methods", "latent,ITQ", "--tune")
    for name in ("latent", "ITQ"):
        assert tuned[name]["validation"] > frozen[name]["validation"]
