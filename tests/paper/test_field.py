"""The comparison of methods on one network: kept cells, unseen classes, other labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hashlens.cli.main import app
from hashlens.paper.field import Cell, field_table

FIELD = ["reproduce", "field", "digits#train", "digits#test", "--bits", "16", "--seeds", "1",
         "--epochs", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a small network and its weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return ["--backbone", "timm:test_efficientnet", "--size", "32", "--weights", str(path)]


@pytest.fixture
def field(network: list[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Scores by method of the comparison, with more options."""
    return partial(_field, tmp_path, *network)


def _field(out: Path, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*FIELD, "--out", str(out), "--json", *more])
    assert result.exit_code == 0, result.output
    cells = json.loads(result.stdout.splitlines()[-1])["results"]
    return {cell["method"]: cell for cell in cells}


def test_methods_are_scored_on_one_network_and_kept(
    field: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = field("--methods", "latent,ITQ,features")
    assert set(first) == {"latent", "ITQ", "features"}
    assert set(first["latent"]["ways"]) == {"bcs"}
    assert set(first["features"]["ways"]) == {"es"}
    for cell in first.values():
        assert 0.3 < cell["validation"] <= 1  # chance is 0.1
    again = field("--methods", "latent,ITQ,features")
    assert again == first  # seconds too: nothing was measured again
    assert "3 of 3 cells" in (tmp_path / "report.md").read_text()
    more = field("--methods", "LSH,ITQ")
    assert more["ITQ"] == first["ITQ"]


def test_unseen_classes_are_searched_by_codes_latent_values_and_features(
    field: Callable[..., dict[str, Any]],
) -> None:
    cells = field("--methods", "latent,ITQ", "--unseen", "2")
    assert set(cells["latent"]["ways"]) == {"bcs", "acs", "es"}
    assert set(cells["ITQ"]["ways"]) == {"bcs", "es"}
    seen = field("--methods", "latent,ITQ")
    for name, cell in cells.items():
        assert cell["ways"]["bcs"]["map@all"] != seen[name]["ways"]["bcs"]["map@all"]


def test_a_network_that_never_learned_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*FIELD, "--out", str(tmp_path), "--backbone", "smallcnn"])
    assert result.exit_code == 1
    assert "smallcnn is trained from scratch and has no published weights" in result.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_a_method_that_is_not_known_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*FIELD, "--out", str(tmp_path), "--methods", "nothing"])
    assert result.exit_code == 1
    assert "expected some of" in result.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_the_table_says_why_a_seed_failed_and_takes_the_median_of_seconds() -> None:
    ways = {"bcs": {"map@1000": 0.5, "map@all": 0.5, "precision_within_radius_2": 0.5}}
    scores = [{"ways": ways, "validation": 0.4, "seconds": s} for s in (1.0, 900.0, 2.0)]
    found = {Cell(seed, 16, "ITQ"): {"scores": own} for seed, own in enumerate(scores)}
    assert "2.0 (3)" in field_table(found).markdown()
    found[Cell(1, 16, "ITQ")] = {"scores": {"error": "fewer bits, please"}}
    assert "fewer bits, please" in field_table(found).markdown()


@pytest.mark.slow
def test_a_network_that_learns_gives_shallow_methods_its_features(
    field: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    scratch = ["--backbone", "smallcnn", "--size", "16", "--epochs", "8", "--methods", "latent,ITQ"]
    frozen = field("--methods", "latent,ITQ", "--epochs", "8")
    tuned = _field(tmp_path / "tuned", *scratch, "--tune")
    for name in ("latent", "ITQ"):
        assert tuned[name]["validation"] > frozen[name]["validation"]
