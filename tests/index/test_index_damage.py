"""Damage, full disks, other versions and other models: a clear line, and nothing else touched."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_encoder import PixelEncoder

from hashlens import HashIndex, IndexStoreError, InvalidInputError, SearchOptions
from hashlens.index import layout

COUNT = 40
FILES = ("index.sqlite", "codes.1", "features.1", "ids.1", "head")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "whole.idx"
    rng = np.random.default_rng(0)
    with HashIndex.create(path, bits=64, feature_dim=9, fingerprint="f00d") as index:
        index.add_encoded(
            rng.integers(0, 256, (COUNT, 8), dtype=np.uint8),
            rng.standard_normal((COUNT, 9)).astype(np.float32),
            [f"photos/{i}.jpg" for i in range(COUNT)],
            [f"class {i % 3}" for i in range(COUNT)],
            [{"price": i, "brand": f"brand {i % 5}"} for i in range(COUNT)],
        )
        index.remove([7])
        index.update(3, label="other", metadata={"a": "b"})
    return path


@pytest.fixture
def whole(made_once: Path, tmp_path: Path) -> Path:
    """A closed index with a dead and an updated image."""
    return shutil.copytree(made_once, tmp_path / "whole.idx")


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _answers(path: Path) -> Any:
    with HashIndex.open(path, read_only=True) as index:
        _, codes, features = index.encoded()
        found = [
            index.search_encoded(
                codes, features.astype(np.float32), SearchOptions(5, mode=mode)
            ).ids.tolist()
            for mode in ("hds", "bcs", "es")
        ]
        return found, index.records(), bytes(codes), bytes(features), index.info().fingerprint


def test_all_files_are_known(whole: Path) -> None:
    assert sorted(_content(whole)) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_anywhere_is_found_or_does_no_harm(name: str, whole: Path) -> None:
    true = _answers(whole)
    data = (whole / name).read_bytes()
    rng = np.random.default_rng(1)
    places = range(len(data)) if len(data) <= 150 else rng.integers(0, len(data), 150).tolist()
    found = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (whole / name).write_bytes(changed)
        try:
            with HashIndex.open(whole, read_only=True) as index:
                damage = index.verify()
        except IndexStoreError as error:
            damage = [str(error)]
        if damage:
            found += 1
            assert any(name in line for line in damage)
        else:
            assert _answers(whole) == true, f"byte {place} of {name}"
        for left in ("index.sqlite-wal", "index.sqlite-shm"):
            (whole / left).unlink(missing_ok=True)
    # The database has pages with free space, where a byte means nothing.
    assert found == len(places) if name != "index.sqlite" else found > 0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_cut_file_is_named(name: str, kept: float, whole: Path) -> None:
    file = whole / name
    os.truncate(file, int(kept * file.stat().st_size))
    before = _content(whole)
    try:
        with HashIndex.open(whole, read_only=True) as index:
            damage = index.verify()
    except IndexStoreError as error:
        damage = [str(error)]
    assert damage
    assert name in damage[0]
    assert "\n" not in damage[0]
    assert {name: _content(whole)[name] for name in before} == before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, whole: Path) -> None:
    (whole / name).unlink()
    if name == "head":
        with HashIndex.open(whole) as index:
            assert "head" in index.verify()[0]
            index.update(1, label="x")  # writes it anew
            assert index.verify() == []
        return
    before = _content(whole)
    with pytest.raises(IndexStoreError, match=name):
        HashIndex.open(whole)
    assert _content(whole) == before


def test_a_lost_log_is_noticed(whole: Path) -> None:
    index = HashIndex.open(whole)
    index.update(2, label="logged")
    copy = shutil.copytree(whole, whole.with_name("copy.idx"))
    assert HashIndex.open(copy).get(2).label == "logged"
    cut = shutil.copytree(whole, whole.with_name("cut.idx"))
    os.truncate(cut / "index.sqlite-wal", 100)
    (cut / "index.sqlite-shm").unlink()
    with pytest.raises(IndexStoreError, match=r"index\.sqlite-wal: cut or missing"):
        HashIndex.open(cut)
    index.close()


def test_damaged_codes_are_refused_before_they_are_searched(whole: Path) -> None:
    data = bytearray((whole / "codes.1").read_bytes())
    data[100] ^= 1
    (whole / "codes.1").write_bytes(data)
    with pytest.raises(IndexStoreError, match=r"codes\.1: block 0 .*checksum"):
        HashIndex.open(whole).search(0)


def test_damage_is_not_compacted_into_new_checksums(whole: Path) -> None:
    data = bytearray((whole / "features.1").read_bytes())
    data[5] ^= 1
    (whole / "features.1").write_bytes(data)
    with HashIndex.open(whole) as index:
        with pytest.raises(IndexStoreError, match=r"features\.1: block 0 .* restore the folder"):
            index.compact()
        assert len(index.verify()) == 1
        assert len(index.records()) == COUNT - 1


def test_a_newer_version_is_refused(whole: Path) -> None:
    connection = sqlite3.connect(whole / "index.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = _content(whole)
    with pytest.raises(IndexStoreError, match=r"expected format version 1, got 2.*upgrade"):
        HashIndex.open(whole)
    assert _content(whole) == before


def test_other_databases_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="no such folder"):
        HashIndex.open(tmp_path / "nowhere")
    with pytest.raises(IndexStoreError, match=r"holds no index\.sqlite"):
        HashIndex.open(tmp_path)
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("CREATE TABLE images (x)")
    connection.close()
    with pytest.raises(IndexStoreError, match="not the database of a Hashlens index"):
        HashIndex.open(tmp_path)
    (tmp_path / "index.sqlite").write_text("no database at all " * 99)
    with pytest.raises(IndexStoreError, match=r"index\.sqlite: damaged"):
        HashIndex.open(tmp_path)
    with pytest.raises(IndexStoreError, match="exists already"):
        HashIndex.create(tmp_path, bits=8, feature_dim=1)


def test_other_models_are_refused(tmp_path: Path, encoder: PixelEncoder) -> None:
    HashIndex.create(tmp_path / "x.idx", encoder).close()
    HashIndex.open(tmp_path / "x.idx", PixelEncoder()).close()
    with pytest.raises(IndexStoreError, match="made with model"):
        HashIndex.open(tmp_path / "x.idx", PixelEncoder(seed=1))
    with pytest.raises(IndexStoreError, match=r"codes of 48 bits .* gives 64"):
        HashIndex.open(tmp_path / "x.idx", PixelEncoder(bits=64))
    with HashIndex.open(tmp_path / "x.idx") as index:
        with pytest.raises(InvalidInputError, match=r"expected 6 bytes .* 48 bits"):
            index.add_encoded(np.zeros((1, 8), np.uint8), np.zeros((1, 36)), ["a"])
        with pytest.raises(InvalidInputError, match=r"expected shape \(1, 36\)"):
            index.add_encoded(np.zeros((1, 6), np.uint8), np.zeros((1, 35)), ["a"])
        with pytest.raises(InvalidInputError, match="row 0 holds NaN"):
            index.add_encoded(np.zeros((1, 6), np.uint8), np.full((1, 36), 1e9), ["a"])
        assert len(index) == 0


def _without_root_powers() -> list[str]:
    """A command prefix under which permissions count for root too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root writes anywhere, and setpriv is not here to prevent it")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_a_read_only_folder_is_searched_and_not_changed(whole: Path) -> None:
    code = (
        "import sys; from hashlens.index.hash_index import HashIndex\n"
        "from hashlens import IndexStoreError\n"
        "index = HashIndex.open(sys.argv[1], read_only=True)\n"
        "print(len(index.search(0, k=3)), index.verify())\n"
        "try: HashIndex.open(sys.argv[1])\n"
        "except IndexStoreError as error: print(error)\n"
    )
    before = _content(whole)
    whole.chmod(0o555)
    command = [*_without_root_powers(), sys.executable, "-c", code, str(whole)]
    result = subprocess.run(command, capture_output=True, text=True)
    whole.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "3 []"
    assert "no permission to write" in result.stdout
    assert _content(whole) == before


def test_a_full_disk_leaves_the_last_commit(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = _answers(whole)
    new = np.zeros((5, 8), np.uint8), np.zeros((5, 9), np.float32), ["new"] * 5

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with HashIndex.open(whole) as index:
        sizes = {name: (whole / name).stat().st_size for name in FILES[1:4]}
        with monkeypatch.context() as patch:
            patch.setattr(layout.os, "fsync", no_space)
            with pytest.raises(IndexStoreError, match=r"no space left on device.*free space"):
                index.add_encoded(*new)
            assert {name: (whole / name).stat().st_size for name in sizes} == sizes
            with pytest.raises(IndexStoreError, match="no space left on device"):
                index.compact()
        assert index.verify() == []
    assert _answers(whole) == true
    with HashIndex.open(whole) as index:
        assert len(index.add_encoded(*new)) == 5
        assert index.compact() == 1
        assert index.verify() == []


def _add_without_end(index: HashIndex, codes: Any, features: Any) -> None:
    while True:
        index.add_encoded(codes, features, ["x" * 100] * len(codes))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        with HashIndex.create(disk / "x.idx", bits=64, feature_dim=256) as index:
            codes, features = np.zeros((100, 8), np.uint8), np.ones((100, 256), np.float32)
            index.add_encoded(codes, features, ["x" * 100] * 100)
            with pytest.raises(IndexStoreError, match="no space left"):
                _add_without_end(index, codes, features)
            added = len(index)
            assert added >= 100
            assert added % 100 == 0
            assert index.verify() == []
            assert len(index.search(0, k=added)) == added
    finally:
        subprocess.run(["umount", str(disk)], check=True)


_KILLED_CREATE = """
import os, signal, sys
from pathlib import Path
from hashlens.index import store
from pixel_encoder import PixelEncoder
from hashlens import HashIndex

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

store.create_tables = killed
HashIndex.create(Path(sys.argv[1]), PixelEncoder())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_what_a_killed_create_left_goes_with_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED_CREATE, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
    assert not (tmp_path / "killed").exists()
    HashIndex.create(tmp_path / "made", PixelEncoder()).close()
    assert os.listdir(tmp_path) == ["made"]


def test_a_largest_size_of_files_is_not_called_damage(whole: Path) -> None:
    """The system's bound on the size of a file (RLIMIT_FSIZE), as a quota would be."""
    program = """
import resource, sys
import numpy as np
from hashlens import HashIndex, IndexStoreError
index = HashIndex.open(sys.argv[1])
codes = np.zeros((3000, 8), np.uint8)
features = np.zeros((3000, 9), np.float32)
for bound in (1 << 12, 1 << 14, 1 << 16):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, resource.RLIM_INFINITY))
    try:
        index.add_encoded(codes, features, ["some/long/name.jpg"] * 3000)
    except IndexStoreError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(index), index.verify())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(whole)], capture_output=True, text=True, check=True
    )
    *refused, state = done.stdout.splitlines()
    assert len(refused) == 3
    for line in refused:
        assert "damaged" not in line
        assert "nothing of this step was committed" in line
    assert state == f"{COUNT - 1} []"


def _flipped(path: Path, sql: str, value: Any) -> None:
    connection = sqlite3.connect(path / "index.sqlite")
    connection.execute(sql, (value,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "value",
    ['{"price": 5', '{"price": 6, "brand": "brand 0"}', "\x00", '{"a":' * 5000, b"\xed\xff"],
)
def test_a_changed_text_of_a_row_is_one_clear_line(
    whole: Path, value: str | bytes, tmp_path: Path
) -> None:
    _flipped(whole, "UPDATE images SET metadata = ? WHERE id = 5", value)
    code = np.zeros((1, 8), np.uint8)
    with HashIndex.open(whole, read_only=True) as index:
        for ask in (
            lambda: index.get(5),
            lambda: index.records(),
            lambda: index.search_hits(code, None, SearchOptions(COUNT, mode="bcs")),
            lambda: index.export(tmp_path / "out", "numpy"),
            lambda: index.export(tmp_path / "out.parquet", "parquet"),
        ):
            with pytest.raises(IndexStoreError, match="damaged") as raised:
                ask()
            assert "\n" not in str(raised.value)
        for where in ({"price": 5}, {"with \x01 odd": 5}):
            options = SearchOptions(COUNT, mode="bcs", where=where)
            try:
                found = index.search_encoded(code, None, options)
            except IndexStoreError as error:
                assert "damaged" in str(error)  # noqa: PT017
            else:
                assert len(found.ids) == 1
        assert index.get(6).metadata["price"] == 6  # the others are read
        assert any("image 5" in line for line in index.verify())


def test_a_damaged_label_is_one_clear_line(whole: Path) -> None:
    _flipped(whole, "UPDATE images SET label = ?, uri = label WHERE id = 5", b"\xff\xfe")
    with HashIndex.open(whole, read_only=True) as index:
        for ask in (index.label_counts, index.records):
            with pytest.raises(IndexStoreError, match="damaged"):
                ask()
