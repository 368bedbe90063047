"""What version 0.1.0 wrote can be opened, gives the same answers, and can be gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golden_files import FOLDER, HOW, TRAIN, answers, command, environment, pictures
from hashlens import Encoder, HashIndex

EXPECTED = json.loads((FOLDER / "answers.json").read_text())


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    return Encoder.load(FOLDER / "model")


@pytest.fixture
def index(encoder: Encoder, tmp_path: Path) -> Iterator[HashIndex]:
    path = shutil.copytree(FOLDER / "photos.idx", tmp_path / "photos.idx")
    with HashIndex.open(path, encoder) as index:
        yield index


def test_the_model_gives_the_same_codes(encoder: Encoder) -> None:
    codes, _ = encoder.encode(pictures(FOLDER))
    assert [code.tobytes().hex() for code in codes] == EXPECTED["codes"]
    assert encoder.classes == tuple("0123456789")


def test_the_index_gives_the_same_answers(index: HashIndex) -> None:
    assert json.loads(json.dumps(answers(index, FOLDER))) == EXPECTED["index"]
    assert index.verify() == []
    assert len(index) == 9


def test_the_index_can_be_changed(index: HashIndex) -> None:
    removed = FOLDER / "photos" / "three" / "1.png"
    added = index.add([removed], labels=["three"])
    assert added.ids.tolist() == [10]
    index.remove([0])
    index.compact()
    assert index.verify() == []
    assert [hit.id for hit in index.search(removed, k=1)] == [10]


def test_the_unfinished_training_is_finished(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    out = shutil.copytree(FOLDER / "unfinished", tmp_path / "model")
    subprocess.run(command(*TRAIN, out, *HOW, "--resume"), env=environment(), check=True)
    assert not (out / "run").exists()
    whole, resumed = (_training(folder) for folder in (FOLDER / "model", out))
    assert resumed["best epoch"] == whole["best epoch"] == 3
    assert resumed["validation"] == pytest.approx(whole["validation"], abs=0.01)


def _training(model: Path) -> dict[str, Any]:
    content = json.loads((model / "model.json").read_text())
    training: dict[str, Any] = content["training"]
    return training
