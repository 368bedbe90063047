"""Words through the commands: train over a CLIP, index pictures, search by picture and by text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

import tiny_clip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of pictures of three colours, by a model over a CLIP that learned no labels."""
    folder = tmp_path_factory.mktemp("text")
    clip = tiny_clip.save_clip(folder / "clip")
    photos = tiny_clip.save_pictures(folder / "photos")
    done = run(
        *("train", photos, "--backbone", f"open_clip:local-dir:{clip}", "--unsupervised"),
        *("--bits", 16, "--out", folder / "m"),
    )
    assert done.exit_code == 0, done.output
    made = run("index", "create", folder / "i", photos, "--model", folder / "m")
    assert made.exit_code == 0, made.output
    return folder


def test_the_model_remembers_the_clip(home: Path) -> None:
    described = json.loads((home / "m" / "model.json").read_text())
    assert described["backbone"] == f"open_clip:local-dir:{home / 'clip'}"
    assert described["start_origin"] == f"open_clip local-dir:{home / 'clip'}"
    assert described["preprocessing"]["size"] == tiny_clip.SIDE


def test_search_by_picture_by_id_and_by_text(home: Path) -> None:
    red = home / "photos" / "red" / "00.png"
    found = run(
        *("search", home / "i", red, 7, "--text", "a red picture", "--text", "a blue picture"),
        *("-k", 10, "--mode", "hds", "--json"),
    )
    assert found.exit_code == 0, found.output
    answers = json.loads(found.stdout)["results"]
    asked = [answer["query"] for answer in answers]
    assert asked == [str(red), 7, "a red picture", "a blue picture"]
    assert answers[0]["hits"][0]["uri"] == str(red)
    assert answers[1]["hits"][0]["id"] == 7
    for answer, colour in zip(answers[2:], ("red", "blue"), strict=True):
        labels = [hit["label"] for hit in answer["hits"]]
        assert labels.count(colour) >= 8


def test_text_alone_is_shown_and_drawn(home: Path, tmp_path: Path) -> None:
    shown = run("search", home / "i", "--text", "red", "-k", 3, "--sheet", tmp_path / "s.png")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("red: 3 found")
    with Image.open(tmp_path / "s.png") as sheet:
        assert np.asarray(sheet.convert("RGB")).std() > 0


def test_what_cannot_be_searched_by_text_says_so(home: Path, tmp_path: Path) -> None:
    empty = run("search", home / "i", "--text", " ")
    assert empty.exit_code == 1
    assert "expected a list of words" in empty.stderr
    nothing = run("search", home / "i")
    assert nothing.exit_code == 2
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32))
    run("train", tmp_path / "x.npy", "--unsupervised", "--bits", 8, "--out", tmp_path / "m")
    run("index", "create", tmp_path / "v", tmp_path / "x.npy", "--model", tmp_path / "m")
    vectors = run("search", tmp_path / "v", "--text", "red")
    assert vectors.exit_code == 1
    assert "knows no texts" in vectors.stderr
    assert len(vectors.stderr.strip().splitlines()) <= 2
