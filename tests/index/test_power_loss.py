"""After a power loss at any moment, an index holds what was acknowledged, and nothing else."""

from __future__ import annotations

import ast
import random
import shutil
import sys
from pathlib import Path

import power_loss
import power_writer
import pytest

from hashlens import HashIndex, IndexStoreError

STATES = 1500


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_power_loss_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    root, log = tmp_path / "disk", tmp_path / "calls"
    root.mkdir()
    told = power_loss.record([sys.executable, power_writer.__file__, str(root)], log)
    states = [[], *map(ast.literal_eval, told.splitlines())]
    calls = sum(1 for _ in power_loss.Disk(root).replay(log))
    rng = random.Random(7)
    each, disk, tried, lost_head, damaged = -(-STATES // calls), power_loss.Disk(root), 0, 0, []
    for call, name in enumerate(disk.replay(log)):
        for _ in range(each):
            tried += 1
            place = tmp_path / "after"
            place.mkdir()
            power_loss.write(disk.after_loss(rng), root, place)
            allowed = states[disk.said : disk.said + 2]
            try:
                with HashIndex.open(place / "made" / "for" / "it" / "x.idx") as index:
                    damage = index.verify()
                    lost_head += sum("head: missing or damaged" in line for line in damage)
                    left = [line for line in damage if "head: missing or damaged" not in line]
                    found = power_writer.state(index)
                    index.add_encoded(*index.encoded()[1:], ["again"] * len(index))
                    left += index.verify()
                    if left or found not in allowed:
                        damaged.append((call, name, left or "other images"))
            except IndexStoreError as error:
                if disk.said:  # its making was acknowledged
                    damaged.append((call, name, str(error)))
            shutil.rmtree(place)
    print(f"{calls} calls, {tried} states, {lost_head} without a head, {len(damaged)} damaged")
    assert tried >= 1000
    assert not damaged, damaged[:5]
