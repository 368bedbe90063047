"""``hashlens train`` on the command line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from command_line import run
from PIL import Image

_QUICK = "--bits 16 --epochs 2 --precision fp32 --batch-size 128"


def _run(*arguments: str) -> Result:
    return run("train", *arguments)


def test_train_and_its_json(tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    answer = _run("digits#train", "--out", out, *_QUICK.split(), "--json")
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert (result["bits"], result["epochs"], result["backbone"]) == (16, 2, "smallcnn")
    assert result["training_images"] + result["validation_images"] > 1000
    assert "backbone smallcnn: grey images" in answer.stderr
    card = (tmp_path / "m" / "README.md").read_text()
    assert "digits#train" in card
    again = _run("digits#train", "--out", out, *_QUICK.split())
    assert again.exit_code == 1
    assert "holds a model" in again.stderr
    done = _run("digits#train", "--out", out, *_QUICK.split(), "--resume")
    assert done.exit_code == 1
    assert "this run is complete; to train on" in done.stderr
    told = _run("digits#train", "--out", out, *_QUICK.split(), "--overwrite")
    assert f"next: hashlens index create INDEX 'digits#train' --model {out}\n" in told.stdout


def test_show_config_prints_toml_and_reasons() -> None:
    answer = _run("digits#train", "--show-config", "--bits", "64")
    assert answer.exit_code == 0
    config = tomllib.loads(answer.stdout)
    assert (config["bits"], config["recipe"], config["backbone"]) == (64, "small", "smallcnn")
    assert answer.stdout.startswith("# recipe small: the images are about 8 px")
    bare = _run("digits#train", "--unsupervised", "--show-config", "--bits", "64")
    assert tomllib.loads(bare.stdout)["bits"] == 64
    assert "objective" not in tomllib.loads(bare.stdout)
    plain = tomllib.loads(_run("--show-config", "--recipe", "paper").stdout)
    assert plain["backbone"] == "alexnet"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "expected a SOURCE"),
        (["digits"], 2, "--out FOLDER"),
        (["digits", "--out", "m", "--bits", "4"], 2, "8 to 4096, got 4"),
        (
            ["digits", "--out", "m", "--objective", "x"],
            2,
            "bihalf, cnnh, cnnh+, crovca, crovca-unsupervised, csq",
        ),
        (["digits", "--out", "m", "--recipe", "x"], 2, "auto, small, finetune, paper"),
        (["digits", "--out", "m", "--devices", "many"], 2, "a number or auto"),
        (["digits", "--out", "m", "--backbone", "vgg"], 1, "no backbone is called 'vgg'"),
        (["nowhere/", "--out", "m"], 1, "nowhere"),
    ],
)
def test_wrong_use_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = _run(*arguments)
    assert answer.exit_code == code, answer.output
    assert words in " ".join(answer.stderr.replace("│", " ").split())
    assert "Traceback" not in answer.output
    assert not (tmp_path / "m").exists()


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def test_a_folder_without_labels_is_told_of_unsupervised(flat_folder: Path, tmp_path: Path) -> None:
    answer = _run(str(flat_folder), "--out", str(tmp_path / "m"))
    assert answer.exit_code == 1
    assert "--unsupervised" in answer.stderr


def test_an_objective_that_needs_no_labels_takes_a_folder_without(
    flat_folder: Path, tmp_path: Path
) -> None:
    options = ["--objective", "crovca-unsupervised", "--bits", "8", "--epochs", "2"]
    options += ["--backbone", "resnet9?width=4", "--out", str(tmp_path / "m")]
    answer = _run(str(flat_folder), *options)
    assert answer.exit_code == 0, answer.output
    told = "epoch chosen by lowest loss of the validation images, as there are no labels"
    assert told in " ".join(answer.stderr.split())
    assert re.search(r"best epoch [12] of 2, validation loss -?\d\.\d+ \(2 images\)", answer.stdout)
    answer = _run(str(flat_folder), *options, "--overwrite", "--json")
    validation = json.loads(answer.stdout)["validation"]
    assert (validation["map"], validation["accuracy"]) == (None, None)


def test_unsupervised_makes_an_ordinary_model(
    flat_folder: Path, tmp_path: Path, weights_dir: Path
) -> None:
    from hashlens import Encoder

    (flat_folder / "cut.png").write_bytes((flat_folder / "0.png").read_bytes()[:200])
    out = tmp_path / "m"
    options = ["--bits", "8", "--size", "32", "--unsupervised", "--json"]
    weights = str(weights_dir / "mobilenetv2_100_imagenet.safetensors")
    answer = _run(str(flat_folder), "--out", str(out), "--weights", weights, *options)
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert result["images"] == {"training": 24, "skipped": 1}
    encoder = Encoder.load(out)
    paths = [flat_folder / f"{i}.png" for i in range(24)]
    codes, _ = encoder.encode(paths)
    assert codes.shape == (24, 1)
    bits = np.unpackbits(codes, axis=1)
    # ITQ's bits split the images it saw about evenly, and no two bits agree.
    assert ((bits.mean(axis=0) > 0.2) & (bits.mean(axis=0) < 0.8)).all()
    again = _run(str(flat_folder), "--out", str(out), "--weights", weights, *options)
    assert again.exit_code == 1
    epochs = _run(str(flat_folder), "--out", str(out), "--unsupervised", "--epochs", "3")
    assert epochs.exit_code == 2
    assert "does not use epochs" in " ".join(epochs.stderr.replace("│", " ").split())
