"""One index used at once by many threads and processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import crash_writer
import numpy as np
import pytest
from pixel_encoder import add_codes
from typer.testing import CliRunner

from hashlens import Hasher, HashIndex, IndexStoreError, SearchOptions
from hashlens.cli.main import app
from hashlens.index import hash_index, store
from hashlens.index.snapshot import Snapshot


def test_a_second_writer_gets_a_clear_error(
    index: HashIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_codes(index, 3)
    monkeypatch.setattr(store, "WRITER_WAIT_SECONDS", 0.1)
    other = sqlite3.connect(index.path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with HashIndex.open(index.path) as second:
        with pytest.raises(IndexStoreError, match="another process is writing"):
            second.remove(0)
        assert len(second.search(0)) == 3  # reading goes on
        other.execute("ROLLBACK")
        second.remove(0)
    other.close()


def test_readers_see_whole_commits_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    index = HashIndex.create(path, bits=crash_writer.BITS, feature_dim=crash_writer.WIDTH)
    context = multiprocessing.get_context("forkserver")
    writer = context.Process(target=crash_writer.add_batches, args=(path, 15))
    errors: list[BaseException] = []
    query = crash_writer.encoded([1])
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                hits = index.search_hits(*query, SearchOptions(1000, mode="es"))[0]
                batches = [hit.metadata["batch"] for hit in hits]
                assert all(batches.count(batch) == 20 for batch in set(batches))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    writer.start()
    for thread in threads:
        thread.start()
    writer.join()
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert writer.exitcode == 0
    assert len(index) == 12 * 20
    assert index.verify() == []
    index.close()


@pytest.mark.parametrize("head", ["written", "old", "missing", "empty"])
def test_searches_by_codes_see_what_others_commit(index: HashIndex, head: str) -> None:
    """They ask the file ``head`` before the database; a writer may die before it wrote there."""
    add_codes(index, 20)
    ids, codes, features = index.encoded()
    options = SearchOptions(30, mode="bcs")
    file = index.path / "head"
    before = file.read_bytes()

    def found() -> list[int]:
        return sorted(index.search_encoded(codes[:1], features[:1], options).ids[0].tolist())

    assert found() == found() == ids.tolist()
    with HashIndex.open(index.path) as other:
        if head == "missing":
            file.unlink()
        (new,) = other.add_encoded(codes[:1], features[:1], ["new.png"]).tolist()
        other.remove([3])
    if head == "old":
        file.write_bytes(before)
    elif head == "empty":
        os.truncate(file, 0)
    if head in ("old", "missing"):
        time.sleep(hash_index.SURE_SECONDS + 0.1)
    assert found() == [*(each for each in ids.tolist() if each != 3), new]


def test_a_commit_stays_searchable_when_its_files_were_dropped(
    index: HashIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_codes(index, 40)
    monkeypatch.setattr(store, "WRITER_WAIT_SECONDS", 0.1)  # the reader holds the log to the end
    with HashIndex.open(index.path) as other, index.store.reading() as transaction:
        snapshot = Snapshot(transaction)
        other.remove(list(range(30)))
        assert other.compact() == 30
        searcher = snapshot.searcher(transaction.connection)
        assert searcher.search_encoded(
            snapshot.codes[:1], None, SearchOptions(1, mode="bcs")
        ).ids == [[0]]
        with pytest.raises(IndexStoreError, match="missing"):
            Snapshot(transaction)
    assert index.ids().tolist() == list(range(30, 40))


def test_a_block_of_one_commit_does_not_see_what_is_written_meanwhile(index: HashIndex) -> None:
    add_codes(index, 3)
    with HashIndex.open(index.path) as reader:
        with reader.one_commit():
            with reader.one_commit():
                add_codes(index, 2)
            assert reader.ids().tolist() == [0, 1, 2]  # also after a block inside this one
        assert reader.ids().tolist() == [0, 1, 2, 3, 4]


def test_compacting_leaves_the_files_of_a_later_compact(
    index: HashIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes and compacts just after this one has committed."""
    add_codes(index, 40)
    index.remove([0])
    write_head = store.write_head

    def and_another_compacts(folder: Path, commit: int) -> None:
        monkeypatch.setattr(store, "write_head", write_head)
        write_head(folder, commit)
        with HashIndex.open(index.path) as other:
            other.remove([1])
            assert other.compact() == 1

    monkeypatch.setattr(store, "write_head", and_another_compacts)
    assert index.compact() == 1
    assert index.verify() == []
    with HashIndex.open(index.path) as reader:
        assert reader.ids().tolist() == list(range(2, 40))
    assert not list(index.path.glob("codes.[12]"))


def test_a_reader_without_permission_sees_what_others_commit(
    index: HashIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_codes(index, 3)
    index.close()

    def refuse(*_: object) -> bool:
        return False

    monkeypatch.setattr(store.os, "access", refuse)
    reader = HashIndex.open(index.path, read_only=True)
    assert len(reader) == 3
    monkeypatch.undo()
    writer = HashIndex.open(index.path)
    add_codes(writer, 2)
    monkeypatch.setattr(store.os, "access", refuse)
    with pytest.raises(IndexStoreError, match="wait until its writer has closed it"):
        len(reader)
    monkeypatch.undo()
    writer.close()
    monkeypatch.setattr(store.os, "access", refuse)
    assert len(reader) == 5


def test_threads_may_write_through_one_index(tmp_path: Path) -> None:
    index = HashIndex.create(tmp_path / "x.idx", bits=64, feature_dim=24)

    def write(seed: int) -> None:
        for i in range(5):
            index.add_encoded(*crash_writer.encoded([100 * seed + i]), [f"{seed} {i}"])

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index.uris()) == sorted(f"{s} {i}" for s in range(4) for i in range(5))
    assert [record.id for record in index.records()] == list(range(20))
    assert index.verify() == []


_WITHOUT_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

static int answer(const char *name, int file, int command, void *rest) {
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) {
        errno = ENOLCK;
        return -1;
    }
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(file, command, rest);
}

#define WITHOUT_LOCKS(name)                        \\
    int name(int file, int command, ...) {         \\
        va_list list;                              \\
        va_start(list, command);                   \\
        void *rest = va_arg(list, void *);         \\
        va_end(list);                              \\
        return answer(#name, file, command, rest); \\
    }
WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)

int flock(int file, int operation) {
    errno = ENOLCK;
    return -1;
}
"""


def test_a_file_system_without_locks_is_read_and_not_written(
    index: HashIndex, tmp_path: Path
) -> None:
    """As a network's may be mounted: every lock is refused, by a library loaded before libc."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    (tmp_path / "locks.c").write_text(_WITHOUT_LOCKS)
    library = str(tmp_path / "locks.so")
    build = [compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "locks.c"), "-ldl"]
    subprocess.run(build, check=True)
    add_codes(index, 1)
    index.close()
    shards = tmp_path / "shards"
    reshard = ["index", "reshard", str(index.path), str(shards), "--shards", "1"]
    made = CliRunner().invoke(app, reshard)
    assert made.exit_code == 0, made.output

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hashlens", *map(str, arguments)]
        around = {**os.environ, "LD_PRELOAD": library}
        return subprocess.run(command, env=around, capture_output=True, text=True)

    for path in (index.path, shards):
        read = run("index", "info", path, "--json")
        assert json.loads(read.stdout)["images"] == 1, read.stderr
    for command in (("remove", index.path, 0), ("compact", index.path), ("remove", shards, 0)):
        refused = run("index", *command)
        assert refused.returncode == 1
        assert "keeps no locks of files" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert len(HashIndex.open(index.path)) == 1
    vectors = np.random.default_rng(0).standard_normal((32, 8), np.float32)
    np.save(tmp_path / "x.npy", vectors)
    Hasher(bits=8, method="LSH").fit(vectors).save(tmp_path / "hasher")
    places = (tmp_path / "new", tmp_path / "x.npy", "--model", tmp_path / "hasher")
    made = run("index", "create", *places)
    assert "make the index on a local disk" in made.stderr
    assert not (tmp_path / "new").exists()
