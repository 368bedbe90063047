"""Writers are killed at random moments; what they acknowledged must be there, and nothing else.

`make crash-test` kills 300 of them; the default suite a few.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any

import crash_writer
import numpy as np
import pytest

from hashlens import HashIndex, SearchOptions

if sys.platform == "win32":
    pytest.skip("SIGKILL and fork servers are not for Windows", allow_module_level=True)

State = dict[int, tuple[int, str | None]]  # id: (value, label)


def _apply(state: State, entry: dict[str, Any], next_id: int) -> State:
    after = dict(state)
    if entry["op"] == "add":
        after.update({next_id + i: (value, None) for i, value in enumerate(entry["values"])})
    elif entry["op"] == "remove":
        for image_id in entry["ids"]:
            del after[image_id]
    elif entry["op"] == "update":
        after[entry["id"]] = (after[entry["id"]][0], entry["label"])
    return after


class Expected:
    """What the journal says about the index, apart from the synced folder."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.state: State = {}
        self.read = 0
        self.synced: dict[str, int] = {}
        self.syncing: dict[str, int] | None = None
        self.operations: dict[str, int] = {}

    def catch_up(self, index: HashIndex) -> None:
        """Replay what was acknowledged; the last change may have been made or not."""
        data = self.journal.read_bytes()
        lines = data[self.read : data.rfind(b"\n") + 1].splitlines()
        self.read = len(data)
        pending = None
        for line in lines:
            entry = json.loads(line)
            if "op" in entry:
                pending = entry
                continue
            assert pending is not None
            first = entry["done"][0] if pending["op"] == "add" else -1
            self.state = _apply(self.state, pending, first)
            if pending["op"] == "sync":
                self.synced = pending["files"]
            self.operations[pending["op"]] = self.operations.get(pending["op"], 0) + 1
            pending = None
        self.syncing = pending["files"] if pending and pending["op"] == "sync" else None
        found = {
            record.id: (record.metadata["value"], record.label)
            for record in index.records()
            if not record.uri.startswith("/")
        }
        if pending is not None and found != self.state:
            first = min(set(found) - set(self.state), default=-1)
            self.state = _apply(self.state, pending, first)
        assert found == self.state


def _check_whole(index: HashIndex) -> None:
    """Everything is intact, matches its record, and is found by all ways to search."""
    assert index.verify() == []
    records = index.records()
    ids, codes, features = index.encoded()
    assert ids.tolist() == [record.id for record in records]
    known = [r.metadata["value"] for r in records if not r.uri.startswith("/")]
    at = [place for place, r in enumerate(records) if not r.uri.startswith("/")]
    true_codes, true_features = crash_writer.encoded(known)
    np.testing.assert_array_equal(codes[at], true_codes)
    np.testing.assert_array_equal(features[at], true_features.astype(np.float16))
    if len(ids):
        everything = index.search_encoded(codes[:1], None, SearchOptions(len(ids) + 5, mode="bcs"))
        assert sorted(everything.ids[0].tolist()) == ids.tolist()
        for mode in ("hds", "es"):
            found = index.search_encoded(
                codes, features.astype(np.float32), SearchOptions(1, mode=mode)
            )
            np.testing.assert_array_equal(found.distances, 0)


def _check_synced(index: HashIndex, expected: Expected, folder: Path) -> None:
    """Synced images are old or new ones, never made up; syncing on ends with the folder.

    Their folder has one path or the other, never both, after a kill while it was relocated.
    """
    moved = [uri for uri in _synced_codes(index) if Path(uri).parent != folder]
    if moved:
        assert len(moved) == len(_synced_codes(index))
        with HashIndex.open(index.path) as writer:
            writer.relocate(crash_writer.elsewhere(folder), folder)
    held = _synced_codes(index)
    allowed = [expected.synced] if expected.syncing is None else [expected.synced, expected.syncing]
    for uri, code in held.items():
        assert code in [_code(files[uri]) for files in allowed if uri in files]
    for uri, value in expected.synced.items():
        if all(files.get(uri) == value for files in allowed):
            assert held[uri] == _code(value)
    for path in crash_writer.list_numbers(folder):
        if not path.read_text():
            path.unlink()  # killed between making the file and writing it
    now = crash_writer.read_numbers(folder)
    if now:
        with HashIndex.open(index.path, crash_writer.NumberEncoder()) as writer:
            writer.sync(folder, crash_writer.list_numbers(folder))
        assert _synced_codes(index) == {uri: _code(value) for uri, value in now.items()}
        expected.synced = now


def _synced_codes(index: HashIndex) -> dict[str, bytes]:
    ids, codes, _ = index.encoded()
    code_of = dict(zip(ids.tolist(), map(bytes, codes), strict=True))
    held = [record for record in index.records() if record.uri.startswith("/")]
    assert len({record.uri for record in held}) == len(held)
    return {record.uri: code_of[record.id] for record in held}


def _code(value: int) -> bytes:
    return bytes(crash_writer.encoded([value])[0][0])


def test_killed_writers_lose_nothing(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kills = pytestconfig.getoption("--kills")
    path, folder, journal = tmp_path / "index", tmp_path / "numbers", tmp_path / "journal"
    folder.mkdir()
    journal.touch()
    HashIndex.create(path, crash_writer.NumberEncoder()).close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_writer"])
    rng = random.Random(kills)
    expected = Expected(journal)
    for kill in range(kills):
        arguments = (path, folder, journal, kill)
        writer = context.Process(target=crash_writer.write_forever, args=arguments)
        began = journal.stat().st_size
        writer.start()
        while journal.stat().st_size == began and writer.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.25))
        assert writer.is_alive(), "the writer died of itself"
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        with HashIndex.open(path) as index:
            expected.catch_up(index)
            _check_whole(index)
            _check_synced(index, expected, folder)
    print(f"{kills} kills; acknowledged meanwhile: {expected.operations}")
