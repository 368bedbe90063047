"""``hashlens labels`` on real handwriting with some labels shuffled, and on what does not fit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from hashlens import open_source, train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "model"
    train("digits#test", out, bits=24, epochs=8, progress=False)
    return out


@pytest.fixture(scope="module")
def noisy_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The test digits as class folders, and the files that lie in a wrong one."""
    root = tmp_path_factory.mktemp("noisy") / "digits"
    source = open_source("digits#test")
    rng = np.random.default_rng(0)
    shown = source.labels.copy()
    rows = rng.permutation(len(source))[:60]
    shown[rows] = rng.permutation(shown[rows])
    wrong = set()
    for i, label in enumerate(shown.tolist()):
        path = root / str(label) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.load(i).save(path)
        if label != source.labels[i]:
            wrong.add(str(path))
    return root, wrong


def test_wrong_labels_come_first(
    model: Path, noisy_folder: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, wrong = noisy_folder
    out = tmp_path / "doubts"
    result = run("labels", model, "--data", folder, "--out", out, "--first", 5)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{folder}: 359 labelled images of 10 classes; ")
    assert lines[1].startswith("label → looks like")
    assert lines[-1] == f"report: {out / 'labels.html'}"
    assert all(line.split()[-1] in wrong for line in lines[-6:-1])
    with open(out / "doubtful.csv", newline="", encoding="utf-8") as file:
        ranked = list(csv.DictReader(file))
    assert len(ranked) == 359
    found = {row["image"] for row in ranked[: len(wrong)]}
    assert len(found & wrong) > 0.9 * len(wrong)
    for row in ranked[:5]:
        assert float(row["neighbours_agree"]) < 0.5
    assert {path.name for path in out.iterdir()} == {
        "doubtful.csv",
        "labels.html",
        "labels.json",
        "labels.md",
        "labels.png",
    }
    page = (out / "labels.html").read_text(encoding="utf-8")
    assert "Classes that are mixed up" in page
    assert "Identical files" not in page


def test_json_identical_files_and_images_left_out(
    model: Path, noisy_folder: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(noisy_folder[0], tmp_path / "digits")
    original = sorted((folder / "3").iterdir())[0]
    shutil.copy(original, folder / "8" / "copy.png")
    shutil.copy(original, folder / "3" / "copy.png")
    shutil.copy(original, folder / "no_class.png")
    (folder / "5" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "doubts"
    result = run("labels", model, "--data", folder, "--json", "--first", 3, "--out", out)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["images"], found["unlabelled"], len(found["first"])) == (361, 1, 3)
    [group] = found["conflicts"]
    assert sorted(image["label"] for image in group) == ["3", "3", "8"]
    assert found["skipped"][0]["image"] == str(folder / "5" / "broken.png")
    assert "broken.png: not an image" in result.stderr
    assert found["confused"][0]["images"] >= found["confused"][-1]["images"]
    assert "Identical files" in (out / "labels.html").read_text(encoding="utf-8")
    strict = run("labels", model, "--data", folder, "--strict")
    assert strict.exit_code == 1
    assert "broken.png" in strict.stderr


def test_a_backbone_that_learned_these_labels_is_warned_of(model: Path) -> None:
    result = run("labels", model, "--data", "digits#test", "--first", 0)
    assert result.exit_code == 0, result.stderr
    assert "warning: the model's features were trained on these labels" in result.stderr


def test_sources_without_labels_are_one_line(
    model: Path, noisy_folder: tuple[Path, set[str]]
) -> None:
    result = run("labels", model, "--data", noisy_folder[0] / "3")
    assert result.exit_code == 1
    assert "needs labels" in result.stderr
    assert result.stderr.count("\n") == 1
    assert run("labels", model).exit_code == 2
