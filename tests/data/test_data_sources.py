"""Sources: what a user writes, and what comes of it."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_tables import PICTURES, assert_same_pictures, write_table

from hashlens import InvalidInputError, SourceError, open_source
from hashlens.data.opening import load_image
from image_builders import encoded, picture, write_class_folder

GOLDEN_TEST_ROWS = [1, 2, 16, 17, 21, 25, 32, 33]
GOLDEN_TEST_SUM = 322_441


def test_sources_pickle_small_and_whole(tmp_path: Path, class_folder: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0, 1, 2] * 3)
    source = open_source(path)
    source.load(0)
    copied = pickle.loads(pickle.dumps(source))
    assert_same_pictures(copied)
    assert copied.uris == source.uris
    images = sum(len(encoded(image)) for image in PICTURES)
    assert len(pickle.dumps(source.store)) < 300 < images
    for spec in (str(class_folder), "digits#test"):
        source = open_source(spec)
        copied = pickle.loads(pickle.dumps(source))
        assert np.array_equal(np.asarray(copied.load(3)), np.asarray(source.load(3)))


@pytest.mark.parametrize("kind", ["folder", "list.csv", "list.txt"])
def test_no_object_is_held_of_each_image(tmp_path: Path, kind: str) -> None:
    path, count = tmp_path / kind, 5000
    names = [f"class{i % 9}/{i:030d}.jpg" for i in range(count)]
    if kind == "folder":
        for i in range(9):
            (path / f"class{i}").mkdir(parents=True)
        for name in names:
            (path / name).touch()
    else:
        sign = "," if kind == "list.csv" else " "
        path.write_text("".join(f"{name}{sign}class{i % 9}\n" for i, name in enumerate(names)))
    open_source(path)  # loads what is needed
    tracemalloc.start()
    try:
        source = open_source(path)
        held = sum(each.count for each in tracemalloc.take_snapshot().statistics("filename"))
    finally:
        tracemalloc.stop()
    assert sorted(uri[-len(names[0]) :] for uri in source.uris) == sorted(names)
    assert all(source.label_name(i) in source.uris[i] for i in range(0, count, 7))
    assert held < count / 10


def test_subsets_keep_order_and_refuse_what_is_outside(class_folder: Path) -> None:
    source = open_source(class_folder)
    part = source.subset([30, 2, 2])
    assert part.labels.tolist() == [2, 0, 0]
    assert list(part.uris) == [source.uris[30], source.uris[2], source.uris[2]]
    assert part.uris[1:] == [source.uris[2]] * 2
    assert len(source.subset(source.labels == 1)) == 12
    assert len(part.subset([])) == 0
    for rows, message in (([36], "0 to 35"), ([-1], "0 to 35"), ([0.5], "whole numbers")):
        with pytest.raises(InvalidInputError, match=message):
            source.subset(rows)
    with pytest.raises(InvalidInputError, match="mask of 36"):
        source.subset([True, False])


def test_digits_have_a_fixed_split() -> None:
    whole, train, test = (open_source(f"digits{part}") for part in ("", "#train", "#test"))
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    assert set(train.uris).isdisjoint(test.uris)
    assert sorted([*train.rows, *test.rows]) == list(range(1797))
    # The split is part of every published figure: it must never change.
    assert test.rows[:8].tolist() == GOLDEN_TEST_ROWS
    assert int(test.rows.sum()) == GOLDEN_TEST_SUM
    assert np.abs(np.bincount(test.labels) / np.bincount(whole.labels) - 0.2).max() < 0.01
    assert whole.classes == tuple("0123456789")
    assert np.array_equal(np.asarray(test.load(0)), np.asarray(load_image(test.uris[0])))
    with pytest.raises(SourceError, match="expected digits, digits#train or digits#test"):
        open_source("digits#dev")


def test_a_folder_called_digits_is_reached_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folder(tmp_path / "digits", 2)
    monkeypatch.chdir(tmp_path)
    assert len(open_source("./digits")) == 6
    assert len(open_source("digits")) == 1797


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty source"),
        ("nowhere", "no such file or folder"),
        ("/nowhere/at/all", "no such file or folder"),
        ("./nowhere", "no such file or folder"),
        ("nowhere.parquet", "no such file or folder"),
        ("nowhere/x.parquet", "no such file or folder"),
        ("~/nowhere/at/all", "no such file or folder"),
        ("hub:", "expected hub:NAME"),
        ("hub:x/y#", "expected hub:NAME"),
        ("bad\0name", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_files_and_rows_are_no_sources(tmp_path: Path) -> None:
    picture("cross", 0).save(tmp_path / "x.png")
    with pytest.raises(SourceError, match="one file, but no source"):
        open_source(tmp_path / "x.png")
    path = write_table(tmp_path / "x.parquet", [0] * 9)
    with pytest.raises(SourceError, match="one row of a file names an image"):
        open_source(f"{path}#3")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(SourceError, match="hollow: no images found"):
        open_source(tmp_path / "hollow")


def test_typing_errors_of_folders_are_not_taken_for_hub_names(
    class_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(class_folder.parent)
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source("classes/crosss")


@pytest.mark.parametrize(("name", "n"), [("mnist", 10_000), ("cifar10", 10_000)])
def test_the_real_data_sets(data_dir: Path, name: str, n: int) -> None:
    source = open_source(f"{data_dir}/{name}#test")
    assert (len(source), len(source.classes)) == (n, 10)
    assert source.load(n - 1).mode == ("L" if name == "mnist" else "RGB")


@given(st.text(max_size=30))
def test_any_text_is_a_source_or_a_source_error(text: str) -> None:
    if text.startswith("hub:") or "/" in text:
        return  # might ask the network
    try:
        source = open_source(text)
    except SourceError as error:
        assert str(error).strip()  # noqa: PT017
    else:
        assert len(source) > 0
