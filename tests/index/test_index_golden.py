"""Format version 1, as it was first written, opens and answers as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import golden_index

from hashlens import HashIndex


def test_version_1_opens_and_answers(tmp_path: Path) -> None:
    path = shutil.copytree(golden_index.FOLDER, tmp_path / "index")
    with HashIndex.open(path) as index:
        answers = json.loads(json.dumps(golden_index.answers(index)))
        assert answers == json.loads(golden_index.ANSWERS.read_text())
        assert index.verify() == []


def test_version_1_is_changed_by_todays_writer(tmp_path: Path) -> None:
    path = shutil.copytree(golden_index.FOLDER, tmp_path / "index")
    with HashIndex.open(path) as index:
        ids, codes, features = index.encoded()
        new = index.add_encoded(codes, features, ["again"] * len(ids))
        assert new[0] == 60
        index.remove(ids)
        index.compact()
        assert index.verify() == []
        assert [hit.id for hit in index.search(int(new[3]), k=1)] == [new[3]]


def test_todays_writer_makes_the_same_index(tmp_path: Path) -> None:
    golden_index.make(tmp_path / "index")
    with HashIndex.open(tmp_path / "index") as index:
        answers = json.loads(json.dumps(golden_index.answers(index)))
    assert answers == json.loads(golden_index.ANSWERS.read_text())
