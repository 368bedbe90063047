"""Several files by one pattern, here and behind a URI."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from picture_tables import PICTURES, assert_same_pictures, write_table

from hashlens import ImageError, SourceError, open_source
from image_builders import encoded, picture


def _write_tables(folder: Path) -> list[list[str]]:
    """Three files of three pictures; their labels."""
    labels = [["b", "a", "b"], ["a", "c", "a"], ["c", "c", "b"]]
    for number, own in enumerate(labels):
        images = [encoded(image) for image in PICTURES[3 * number :][:3]]
        write_table(folder / f"part-{number:03}.parquet", own, images=images)
    return labels


@pytest.mark.parametrize("pattern", ["*.parquet", "part-{000..002}.parquet", "part-00*.parquet"])
@pytest.mark.parametrize("place", ["here", "remote"])
def test_parquet_files_of_a_pattern_are_one_source(
    tmp_path: Path, object_store: Any, pattern: str, place: str
) -> None:
    labels = _write_tables(tmp_path)
    folder = str(tmp_path)
    if place == "remote":
        folder = "memory://shop/tables"
        for path in tmp_path.iterdir():
            object_store.pipe(f"/shop/tables/{path.name}", path.read_bytes())
    source = pickle.loads(pickle.dumps(open_source(f"{folder}/{pattern}")))
    assert source.classes == ("a", "b", "c")
    assert [source.label_name(i) for i in range(9)] == [*chain.from_iterable(labels)]
    assert source.uris[4] == f"{folder}/part-001.parquet#1"
    assert_same_pictures(source)


def test_a_pattern_that_names_nothing_or_a_file_that_is_missing_is_said(
    tmp_path: Path, object_store: Any
) -> None:
    _write_tables(tmp_path)
    object_store.pipe("/shop/x.txt", b"-")
    for spec, message in (
        (f"{tmp_path}/*.png", "no file has such a name"),
        (f"{tmp_path}/nowhere/*.parquet", "no file has such a name"),
        ("memory://shop/*.parquet", "no file has such a name"),
        (f"{tmp_path}/part-{{000..003}}.parquet", r"part-003\.parquet: no such file"),
        ("memory://shop/*", r"no images found.*passed over 1 .*\.txt 1"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            open_source(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["here", "remote"])
def test_images_of_a_pattern_have_the_classes_of_their_folders(
    tmp_path: Path, object_store: Any, place: str
) -> None:
    root = "memory://shop/photos" if place == "remote" else f"{tmp_path}/photos"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/1.jpg", "dog/old/9.png"):
        data = encoded(picture("cross", 0))
        object_store.pipe(f"/shop/photos/{name}", data)
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = open_source(f"{root}/*/*.png")
    assert list(source.uris) == [f"{root}/{name}.png" for name in ("cat/1", "cat/2", "dog/1")]
    assert [source.label_name(i) for i in range(3)] == ["cat", "cat", "dog"]
    assert source.load(2).size == picture("cross", 0).size
    assert len(open_source(f"{root}/**/*.png")) == 4
    plain = open_source(f"{root}/dog/1.*")
    assert (len(plain), plain.classes) == (2, ())
    assert "no classes" in plain.notes[0]
    assert len(open_source(f"{root}/*/*.png", exclude=["dog"])) == 2


def test_a_source_may_have_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    for number in range(40):
        write_table(tmp_path / f"{number:02}.parquet", [number] * 9)
    script = (
        "import resource; from hashlens import open_source\n"
        f"source = open_source({str(tmp_path)!r} + '/*.parquet'); source.load(0)\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, hard))\n"
        f"source = open_source({str(tmp_path)!r} + '/*.parquet')\n"
        "print(len(source), len(source.classes), sum(source.load(i).size[0] for i in range(360)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["360", "40", str(360 * PICTURES[0].width)]


def test_another_file_in_the_place_of_one_that_is_read_is_noticed(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0] * 9, group=1)
    source = open_source(path)
    source.load(0)
    os.replace(write_table(tmp_path / "y.parquet", [0] * 9), path)
    with pytest.raises(ImageError, match="another file came there"):
        source.load(8)
