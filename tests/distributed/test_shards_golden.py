"""Format version 2 of shards, as it was first written, opens and answers as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hashlens.distributed.sharded import ShardedIndex

from . import golden_shards


def test_version_2_opens_answers_and_is_changed_by_todays_writer(tmp_path: Path) -> None:
    index = ShardedIndex.open(shutil.copytree(golden_shards.FOLDER, tmp_path / "index"))
    answers = json.loads(json.dumps(golden_shards.answers(index)))
    assert answers == json.loads(golden_shards.ANSWERS.read_text())
    assert index.verify() == []
    _, codes, features = index.encoded()
    index.add_encoded(codes, features, ["again"] * len(codes))
    index.remove(index.ids()[:5])
    assert index.compact() > 0
    assert index.verify() == []
    assert len(index) == 2 * len(codes) - 5


def test_todays_writer_makes_the_same_shards(tmp_path: Path) -> None:
    golden_shards.make(tmp_path / "index")
    answers = json.loads(json.dumps(golden_shards.answers(ShardedIndex.open(tmp_path / "index"))))
    assert answers == json.loads(golden_shards.ANSWERS.read_text())
