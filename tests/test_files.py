"""Names of files and rows, and writing that leaves the old or the new content, never half of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from hashlens.files import (
    Row,
    content_digest,
    file_state,
    move,
    parse_row,
    path_uri,
    remove_abandoned,
    replace_file,
    row_uri,
    sync_directory,
    uri_path,
    written_aside,
)

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


@given(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1))
@example("50%.png")
@example("a#b.png")
@example("file:")
def test_paths_survive_the_way_through_their_uri(name: str) -> None:
    path = Path(os.path.abspath(os.path.join("/photos", name)))
    assert uri_path(path_uri(path)) == path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_becomes_a_file_uri() -> None:
    path = Path(os.fsdecode(b"/photos/\xff#1.png"))
    assert path_uri(path) == "file:///photos/%FF%231.png"
    assert uri_path(path_uri(path)) == path


@pytest.mark.parametrize(
    ("uri", "table", "row", "in_file"),
    [
        ("/photos/x.parquet#7", "/photos/x.parquet", 7, True),
        ("/photos/a#b/X.PARQUET#0", "/photos/a#b/X.PARQUET", 0, True),
        ("file:///photos/%FF.parquet#12", "file:///photos/%FF.parquet", 12, True),
        ("digits#3", "digits", 3, False),
        ("hub:owner/name#train#12", "hub:owner/name#train", 12, False),
        ("hub:/home/a#b#test#1", "hub:/home/a#b#test", 1, False),
    ],
)
def test_a_row_of_a_table_has_one_grammar(uri: str, table: str, row: int, in_file: bool) -> None:
    found = parse_row(uri)
    assert found == Row(table, row)
    assert found.is_in_file == in_file
    assert row_uri(table, row) == uri


@pytest.mark.parametrize(
    "uri",
    ["", "/photos/a.png", "/photos/a#7", "x.parquet", "x.parquet#", "x.parquet#-1", "x.parquet#7a",
     "digits#train", "hub:owner/name#3", "my digits#3", "/photos/digits#3", "x.parquet#7.png"],
)  # fmt: skip
def test_other_names_are_no_rows(uri: str) -> None:
    assert parse_row(uri) is None


def test_the_state_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    state = file_state(path)
    assert state is not None
    assert state.size == 7
    status = path.stat()
    assert state.mtime_ns == max(status.st_mtime_ns, status.st_ctime_ns)
    assert state.digest == content_digest(b"content") != content_digest(b"other")
    assert file_state(tmp_path) is None
    assert file_state(tmp_path / "b") is None
    assert file_state("a\0b") is None


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, bytes_of in (("grün\n", "grün\n".encode()), (b"\0\r\n", b"\0\r\n"), ("", b"")):
        replace_file(path, content)
        assert path.read_bytes() == bytes_of
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_function_may_write_the_file_by_its_name(tmp_path: Path) -> None:
    replace_file(tmp_path / "a.png", Image.new("L", (2, 2)).save)  # the ending says the format
    assert Image.open(tmp_path / "a.png").format == "PNG"
    replace_file(tmp_path / "a.npy", lambda aside: np.save(aside, np.arange(3)))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(3))
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "a.png"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".txt")
    replace_file(path, "x")
    assert path.read_text() == "x"


def test_a_failure_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_file(path, "old")

    def fail(aside: Path) -> None:
        aside.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_names_the_file_that_the_user_knows(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as raised:
        replace_file(path, "x")
    assert raised.value.filename == str(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("x")
    replace_file(tmp_path / "a", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "a")}
    assert len(modes) == 1


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made"

    def make(*, fail: bool, there: bool = False) -> None:
        with written_aside(path) as aside:
            (aside / "inner").mkdir(parents=True)
            (aside / "inner" / "a").write_text("x")
            assert path.exists() == there
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        make(fail=True)
    assert os.listdir(tmp_path) == []
    make(fail=False)
    assert (path / "inner" / "a").read_text() == "x"
    assert os.listdir(tmp_path) == ["made"]
    with pytest.raises(OSError, match="not empty"):  # a folder that holds something stays
        make(fail=False, there=True)
    assert os.listdir(tmp_path) == ["made"]


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    folder_after = [] if os.name == "nt" else ["sync folder"]
    replace_file(tmp_path / "a", "x")
    assert steps == ["sync file", "rename", *folder_after]
    steps.clear()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1").touch()
    move(tmp_path / "b", tmp_path / "c")
    assert steps == ["sync file", *folder_after, "rename", *folder_after]
    sync_directory(tmp_path)


_KILLED = """
import sys, time
from pathlib import Path
from hashlens.files import replace_file, written_aside

def wait(aside):
    aside.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

path = Path(sys.argv[1])
with written_aside(path / "folder") as aside:
    aside.mkdir()
    (aside / "part").touch()
    replace_file(path / "file", wait)
"""


@needs_signals
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", "old")
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        remove_abandoned(tmp_path)  # the writer lives: nothing of it may go
        assert len(os.listdir(tmp_path)) == 3
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert (tmp_path / "file").read_text() == "old"
    assert len(os.listdir(tmp_path)) == 3
    (tmp_path / ".new-notes").touch()
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".new-notes", "file"]
    remove_abandoned(tmp_path / "missing")
