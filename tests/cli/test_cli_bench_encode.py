"""``hashlens bench encode``: every stage has a rate, and models are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run

from hashlens.models.backbones import create_backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.description import ModelConfig
from hashlens.models.latent import LatentHashNet


def _model(directory: Path, *, size: int = 8, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    built = create_backbone("smallcnn", channels=1, size=size)
    net = LatentHashNet(built.module, feature_dim=built.feature_dim, bits=16, classes=0)
    config = ModelConfig(16, built.feature_dim, (), built.name, built.preprocessing)
    save_model(directory, net, config)
    return directory


def test_rates_and_equal_bits(tmp_path: Path) -> None:
    first, other = _model(tmp_path / "a"), _model(tmp_path / "b", seed=1)
    arguments = ["bench", "encode", str(first), str(other), "--data", "digits", "--images", "50"]
    result = run(*arguments, "--rounds", "2", "--json")
    assert result.exit_code == 0, result.output
    speed = json.loads(result.stdout)
    assert (speed["n_images"], speed["rounds"], speed["batch_size"]) == (50, 2, 32)
    for stage in ("decode", "transform", "write", "together"):
        assert speed[stage] > 0
    forward = speed["forward"]
    assert forward[str(first)]["bits_equal"] == 1
    assert 0.2 < forward[str(other)]["bits_equal"] < 0.9  # other random weights, other codes
    for one in forward.values():
        assert 0 < one["slow"] <= one["images_per_second"] <= one["fast"]
    table = run(*arguments, "--rounds", "1")
    assert table.exit_code == 0
    assert "100.000% of bits equal" in table.stdout


def test_models_of_other_input_are_refused(tmp_path: Path) -> None:
    models = [str(_model(tmp_path / "a")), str(_model(tmp_path / "b", size=9))]
    result = run("bench", "encode", *models, "--data", "digits")
    assert result.exit_code == 1
    assert "another input" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--data", "digits"], 2), (["none/", "--data", "digits"], 1)]
)
def test_wrong_usage_and_no_model(arguments: list[str], code: int) -> None:
    assert run("bench", "encode", *arguments).exit_code == code
