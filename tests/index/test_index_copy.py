"""Copies of an index in use are whole; a file that was cut ends no process."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import crash_writer
import numpy as np
import pytest
from typer.testing import CliRunner

from hashlens import HashIndex, IndexStoreError, SearchOptions
from hashlens.cli.main import app


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two batches, with an upload."""
    path = tmp_path_factory.mktemp("made") / "whole.idx"
    HashIndex.create(path, bits=crash_writer.BITS, feature_dim=crash_writer.WIDTH).close()
    crash_writer.add_batches(path, 2)
    (path / "uploads").mkdir()
    (path / "uploads" / f"{'0' * 64}.png").write_bytes(b"a picture")
    (path / "uploads" / ".new-1-2-3-half.png").write_bytes(b"half")
    return path


def test_copies_of_an_index_that_is_written_are_of_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    HashIndex.create(path, bits=crash_writer.BITS, feature_dim=crash_writer.WIDTH).close()
    context = multiprocessing.get_context("forkserver")
    writer = context.Process(target=crash_writer.add_batches, args=(path, 30))
    writer.start()
    copies = 0
    with HashIndex.open(path, read_only=True) as index:
        while writer.is_alive() or not copies:
            copy = tmp_path / f"copy {copies}.idx"
            images = index.copy(copy)
            with HashIndex.open(copy) as opened:
                assert opened.verify() == []
                records = opened.records()
                batches = [record.metadata["batch"] for record in records]
                assert all(batches.count(batch) == 20 for batch in set(batches))
                assert len(records) == images
                ids, codes, _ = opened.encoded()
                assert ids.tolist() == [record.id for record in records]
                values = [1000 * batch + i % 20 for i, batch in enumerate(batches)]
                np.testing.assert_array_equal(codes, crash_writer.encoded(values)[0])
            copies += 1
    writer.join()
    assert writer.exitcode == 0


def test_a_copy_is_an_index_of_its_own(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "deep" / "copy.idx"
    done = CliRunner().invoke(app, ["index", "copy", str(whole), str(copy), "--json"])
    assert json.loads(done.stdout) == {"index": str(whole), "to": str(copy), "images": 40}
    assert [file.name for file in (copy / "uploads").iterdir()] == [f"{'0' * 64}.png"]
    crash_writer.add_batches(copy, 1)
    with HashIndex.open(copy) as opened, HashIndex.open(whole) as before:
        assert (len(opened), len(before)) == (60, 40)
        assert opened.verify() == before.verify() == []
        assert opened.ids()[-1] == 59
    done = CliRunner().invoke(app, ["index", "copy", str(whole), str(copy)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "exists already" in done.stderr


@pytest.mark.parametrize("name", ["codes.1", "features.1", "ids.1", "index.sqlite"])
def test_a_damaged_index_is_not_copied(name: str, whole: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(whole, tmp_path / "damaged.idx")
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 2] ^= 4
    (damaged / name).write_bytes(data[: -len(data) // 3] if "sqlite" in name else data)
    with (
        pytest.raises(IndexStoreError, match=r"differs|damaged|fails its checksum"),
        HashIndex.open(damaged, read_only=True) as index,
    ):
        index.copy(tmp_path / "copy.idx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.idx"]


def test_a_copy_of_shards_opens(whole: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder, copy = tmp_path / "shards", tmp_path / "copy"
    made = run(app, ["index", "reshard", str(whole), str(folder), "--shards", "2"])
    assert made.stdout == f"{folder} holds 40 images in 2 shards\n"
    done = run(app, ["index", "copy", str(folder), str(copy)])
    assert done.stdout == f"copied {folder} with 40 images to {copy}\n"
    checked = run(app, ["index", "verify", str(copy)])
    assert checked.exit_code == 0, checked.output
    back = run(app, ["index", "reshard", str(copy), str(tmp_path / "one"), "--json"])
    assert json.loads(back.stdout)["images"] == 40
    with HashIndex.open(whole) as expected, HashIndex.open(tmp_path / "one") as index:
        assert [record[1:] for record in index] == [record[1:] for record in expected]


@pytest.mark.parametrize("name", ["codes.1", "features.1", "ids.1"])
def test_a_file_that_was_cut_is_told_and_ends_nothing(
    name: str, whole: Path, tmp_path: Path
) -> None:
    """Reading behind the end of a mapped file would end the process with SIGBUS."""
    path = shutil.copytree(whole, tmp_path / "cut.idx")
    with HashIndex.open(path, read_only=True) as index:
        _, codes, features = index.encoded([0])
        query = codes, features.astype(np.float32), SearchOptions(5, mode="es")
        before = index.search_encoded(*query)
        content = (path / name).read_bytes()
        os.truncate(path / name, 0)
        for ask in (lambda: index.search_encoded(*query), lambda: index.encoded(), index.ids):
            with pytest.raises(IndexStoreError, match=r"was cut; restore"):
                ask()
        (path / name).write_bytes(content)  # as from a backup, into the same file
        assert index.search_encoded(*query).ids.tolist() == before.ids.tolist()
