"""``hashlens export``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run

from hashlens import Encoder
from hashlens.models.backbones import create_backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.description import ModelConfig
from hashlens.models.latent import LatentHashNet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    built = create_backbone("smallcnn", channels=1, size=8)
    net = LatentHashNet(built.module, feature_dim=built.feature_dim, bits=16, classes=10)
    classes = tuple("0123456789")
    directory = tmp_path_factory.mktemp("cli-export") / "model"
    save_model(
        directory, net, ModelConfig(16, built.feature_dim, classes, built.name, built.preprocessing)
    )
    return directory


def test_float32_says_what_it_wrote(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.onnx"
    result = run("export", model, "--onnx", path, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["path"] == str(path)
    assert report["bits_equal"] >= 0.999
    assert (
        report["fingerprint"] == Encoder.load(path).fingerprint == Encoder.load(model).fingerprint
    )


def test_int8_calibrates_on_a_source(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    result = run(
        "export", model, "--onnx", path, "--int8", "--calibration", "digits#train",
        "--calibration-images", 100,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "on 100 calibration images" in result.stdout
    encoder = Encoder.load(path)
    assert encoder.fingerprint != Encoder.load(model).fingerprint
    assert encoder.fingerprint[:12] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--onnx", "model.bin"], 2, "must end in .onnx"),
        (["--onnx", "m.onnx", "--int8"], 2, "--calibration"),
        (["--onnx", "m.onnx", "--calibration", "digits"], 2, "--int8"),
        ([], 2, "--onnx"),
    ],
)
def test_wrong_usage(model: Path, arguments: list[str], code: int, message: str) -> None:
    result = run("export", model, *arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_no_model_there(tmp_path: Path) -> None:
    result = run("export", tmp_path / "x", "--onnx", tmp_path / "m.onnx")
    assert result.exit_code == 1
    assert "no such directory" in result.stderr
