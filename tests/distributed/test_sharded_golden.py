"""A sharded index that version 0.1.0 wrote gives the answers of one index of the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from golden_files import FOLDER, answers
from hashlens import Encoder
from hashlens.distributed.sharded import ShardedIndex


def test_the_shards_give_the_same_answers(cluster: Any, tmp_path: Path) -> None:
    path = shutil.copytree(FOLDER / "shards.idx", tmp_path / "shards.idx")
    expected = json.loads((FOLDER / "answers.json").read_text())["index"]
    encoder = Encoder.load(FOLDER / "model")
    with ShardedIndex.open(path, encoder, deadline=60.0) as index:
        assert json.loads(json.dumps(answers(index, FOLDER))) == expected
        assert len(index) == 9
