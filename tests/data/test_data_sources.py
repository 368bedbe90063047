"""Sources: what a user writes, and what comes of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlens.data import parquet
from hashlens.data.images import load_image
from hashlens.data.labels import require_labels
from hashlens.data.source import Source
from hashlens.data.sources import open_source
from hashlens.errors import ImageError, InvalidInputError, SourceError
from image_builders import CLASSES, encoded, picture, write_class_folder

PICTURES = [picture(CLASSES[i % 3], i, 8) for i in range(9)]


def write_table(
    path: Path,
    labels: Any = None,
    names: Any = None,
    *,
    images: Sequence[bytes | None] | None = None,
    struct: bool = True,
    group: int = 4,
) -> Path:
    """A parquet file of ``PICTURES`` with a label column, class names in the schema."""
    data = [encoded(image) for image in PICTURES] if images is None else list(images)
    column = [{"bytes": value, "path": None} for value in data] if struct else data
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    columns = {"image": pa.array(column, kind)}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        if labels is not None and pa.types.is_list(columns["label"].type):
            feature = {"feature": feature, "_type": "List"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)
    return path


def assert_same_pictures(source: Source) -> None:
    for i, expected in enumerate(PICTURES):
        for image in (source.load(i), load_image(source.uris[i])):
            assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_a_class_folder(class_folder: Path) -> None:
    source = open_source(str(class_folder))
    assert source.classes == CLASSES
    assert len(source) == 36
    assert np.bincount(source.labels).tolist() == [12, 12, 12]
    assert source.label_matrix is None
    assert source.uris[12] == str(class_folder / "cross" / "000.png")
    assert source.label_name(12) == "cross"
    assert np.array_equal(np.asarray(source.load(12)), np.asarray(picture("cross", 0)))
    assert source.notes == ()


def test_images_deep_in_a_class_belong_to_it(class_folder: Path) -> None:
    (class_folder / "cross" / "old" / "scans").mkdir(parents=True)
    picture("cross", 99).save(class_folder / "cross" / "old" / "scans" / "x.png")
    source = open_source(class_folder)
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [12, 13, 12]


def test_a_flat_folder_is_unlabelled(class_folder: Path) -> None:
    source = open_source(class_folder / "cross")
    assert (source.classes, len(source)) == ((), 12)
    assert (source.labels == -1).all()
    assert source.label_name(0) is None
    with pytest.raises(SourceError, match=r"none of the 12 images has one.*no sub-folders"):
        require_labels(source)


def test_a_folder_may_be_labelled_in_part(class_folder: Path) -> None:
    (class_folder / "empty").mkdir()
    for i in range(4):
        picture("cross", 50 + i).save(class_folder / f"new{i}.png")
    source = open_source(class_folder)
    assert source.classes == CLASSES
    assert (source.labels == -1).sum() == 4
    assert len(source.subset(source.labelled)) == 36
    assert "empty" in source.notes[0]
    assert "4 images lie outside" in source.notes[1]
    require_labels(source)


def test_a_folder_that_is_split_is_not_taken_for_two_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_class_folder(tmp_path / "data" / part, 2)
    spec = str(tmp_path / "data")
    with pytest.raises(SourceError, match=f"name one: {spec}#test or {spec}#train"):
        open_source(spec)
    source = open_source(f"{spec}#train")
    assert (source.classes, len(source)) == (CLASSES, 6)
    with pytest.raises(SourceError, match=r"no part 'other'.*#test, #train"):
        open_source(f"{spec}#other")


def test_a_folder_of_two_tables_must_be_told_apart(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", list("aab" * 3))
    assert len(open_source(tmp_path)) == 9
    write_table(tmp_path / "test.parquet", list("abb" * 3))
    with pytest.raises(SourceError, match=r"2 parquet files; name one: \S+#test or \S+#train"):
        open_source(f"{tmp_path}/")
    source = open_source(f"{tmp_path}#test")
    assert source.labels.tolist() == [0, 1, 1] * 3
    assert source.uris[2] == f"{tmp_path}/test.parquet#2"
    with pytest.raises(SourceError, match="no part 'dev'"):
        open_source(f"{tmp_path}#dev")
    picture("cross", 0).save(tmp_path / "x.png")
    with pytest.raises(SourceError, match=r"both images and test\.parquet"):
        open_source(tmp_path)


@pytest.mark.parametrize("struct", [True, False])
def test_tables_keep_bytes_in_a_struct_or_plainly(tmp_path: Path, struct: bool) -> None:
    path = write_table(tmp_path / "x.parquet", [0, 1, 2] * 3, list(CLASSES), struct=struct)
    source = open_source(path)
    assert source.classes == CLASSES
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert_same_pictures(source)


@pytest.mark.parametrize(
    ("labels", "names", "classes", "expected"),
    [
        ([7, 3, 7] * 3, None, ("3", "7"), [1, 0, 1] * 3),
        ([1, None, -1] * 3, ["x", "y"], ("x", "y"), [1, -1, -1] * 3),
        (["b", "a", None] * 3, None, ("a", "b"), [1, 0, -1] * 3),
        (["b", "a", ""] * 3, ["b", "a", "c"], ("b", "a", "c"), [0, 1, -1] * 3),
        ([True, False, None] * 3, None, ("false", "true"), [1, 0, -1] * 3),
        (pa.array(["b", "a", "b"] * 3).dictionary_encode(), None, ("a", "b"), [1, 0, 1] * 3),
        (pa.array([2, 0, 2] * 3, pa.uint8()), None, ("0", "2"), [1, 0, 1] * 3),
        (pa.nulls(9), None, (), [-1] * 9),
    ],
)
def test_label_columns(
    tmp_path: Path, labels: Any, names: Any, classes: tuple[str, ...], expected: list[int]
) -> None:
    source = open_source(write_table(tmp_path / "x.parquet", labels, names))
    assert source.classes == classes
    assert source.labels.tolist() == expected
    assert source.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0.5, 1.0, 2.0] * 3, None, "whole numbers, words, or lists of either, got double"),
        ([{"a": 1}] * 9, None, "got struct"),
        ([[0.5]] * 9, None, "got double"),
        ([0, 5, 1] * 3, ["x", "y"], "label 5 .* has no name"),
        ([0, -2, 1] * 3, None, "got -2 in 1"),
        (["x", "z", "y"] * 3, ["x", "y"], "'z' is not among the 2 class names"),
        ([0, 1, 1] * 3, ["x", "x"], "repeat"),
        (pa.array([2**63 + 1] * 9, pa.uint64()), None, "over 2"),
    ],
)
def test_label_columns_of_other_types_are_refused(
    tmp_path: Path, labels: Any, names: Any, message: str
) -> None:
    path = write_table(tmp_path / "x.parquet", labels, names)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}, column 'label'")


def test_a_missing_label_column_means_unlabelled(tmp_path: Path) -> None:
    source = open_source(write_table(tmp_path / "x.parquet"))
    assert (source.labels == -1).all()
    with pytest.raises(SourceError, match=r"no column 'label' \(columns: image\)"):
        require_labels(source)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([["b", "a"], ["c"], []] * 3, None),
        ([[1, 0], [2], None] * 3, ["a", "b", "c"]),
        ([[1, 0, None], [2], [-1]] * 3, ["a", "b", "c"]),
    ],
)
def test_a_list_column_is_multi_label(tmp_path: Path, labels: Any, names: Any) -> None:
    source = open_source(write_table(tmp_path / "x.parquet", labels, names))
    assert source.classes == ("a", "b", "c")
    assert source.label_matrix is not None
    assert source.label_matrix.dtype == np.bool_
    assert source.label_matrix.astype(int).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]] * 3
    assert source.labels.tolist() == [1, 2, -1] * 3
    part = source.subset([1, 0])
    assert part.label_matrix is not None
    assert part.label_matrix.astype(int).tolist() == [[0, 0, 1], [1, 1, 0]]


def test_tables_without_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"picture": [b"1"], "label": [1]}), path)
    with pytest.raises(SourceError, match="expected a column 'image', got picture, label"):
        open_source(path)
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), path)
    with pytest.raises(SourceError, match=r"must be binary.*got string"):
        open_source(path)
    write_table(path, pa.array([], pa.int64()), images=[])
    with pytest.raises(SourceError, match="no rows"):
        open_source(path)


def test_damaged_tables_are_one_line(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0, 1, 2] * 3)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1 no PAR1", whole[:-20] + bytes(20)):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="not a whole parquet file") as caught:
            open_source(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_row_group_names_its_images(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0, 1, 2] * 3)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    source = open_source(path)
    source.load(0)
    with pytest.raises(ImageError, match=f"{path}#5: row group 1 is damaged"):
        source.load(5)


def test_rows_without_bytes_and_rows_that_are_not_there(tmp_path: Path) -> None:
    data = [encoded(image) for image in PICTURES]
    path = write_table(tmp_path / "x.parquet", [0] * 9, images=[None, b"", *data[2:]])
    source = open_source(path)
    for row, reason in ((0, "no image bytes"), (1, "empty")):
        for attempt in (lambda row=row: source.load(row), lambda r=row: load_image(source.uris[r])):
            with pytest.raises(ImageError, match=f"x.parquet#{row}: {reason}"):
                attempt()
    with pytest.raises(ImageError, match=r"x.parquet#9: expected a row from 0 to 8, got 9"):
        load_image(f"{path}#9")
    with pytest.raises(ImageError, match="no such file"):
        load_image(f"{tmp_path}/none.parquet#0")
    with pytest.raises(ImageError, match="digits: expected a row from 0 to 1796, got 1797"):
        load_image("digits#1797")


def test_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0] * 9)
    before = load_image(f"{path}#0")
    write_table(path, [0] * 4, images=[encoded(picture("stripe", 77, 16))] * 4)
    assert before.size == (8, 8)
    assert load_image(f"{path}#0").size == (16, 16)


def test_row_groups_beyond_the_cache_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    source = open_source(write_table(tmp_path / "x.parquet", [0] * 9, group=2))
    assert_same_pictures(source)
    with ThreadPoolExecutor(4) as pool:
        rows = [*range(9)] * 20
        images = list(pool.map(source.load, rows))
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(PICTURES[row]))


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


GOLDEN_TEST_ROWS = [1, 2, 16, 17, 21, 25, 32, 33]
GOLDEN_TEST_SUM = 322_441


def test_a_folder_called_digits_is_reached_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folder(tmp_path / "digits", 2)
    monkeypatch.chdir(tmp_path)
    assert len(open_source("./digits")) == 6
    assert len(open_source("digits")) == 1797


def test_a_hash_in_a_folder_name_is_part_of_the_name(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "year#2024", 2)
    assert len(open_source(tmp_path / "year#2024")) == 6


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


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that ``datasets.load_dataset`` opens by its folder, with two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("train", "test"):
        write_class_folder(tmp_path / "shapes" / part, 3)
    return tmp_path / "shapes"


def test_a_hub_data_set_of_image_files(hub_folder: Path) -> None:
    source = open_source(f"hub:{hub_folder}#train")
    assert source.classes == CLASSES
    assert sorted(source.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    assert source.uris[4] == f"hub:{hub_folder}#train#4"
    assert np.array_equal(np.asarray(source.load(4)), np.asarray(load_image(source.uris[4])))
    assert len(pickle.loads(pickle.dumps(source))) == 9
    with pytest.raises(SourceError, match=r"several splits; name one: .*#train or .*#test"):
        open_source(f"hub:{hub_folder}")
    with pytest.raises(SourceError, match="could not be loaded"):
        open_source(f"hub:{hub_folder}#dev")
    with pytest.raises(ImageError, match="expected a row from 0 to 8, got 9"):
        load_image(f"hub:{hub_folder}#train#9")


def test_a_hub_data_set_of_tables(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    table = pq.read_table(write_table(tmp_path / "x.parquet", [0, 1, 2] * 3, list(CLASSES)))
    info = table.schema.metadata[b"huggingface"].replace(b'"image"', b'"img"')
    table = table.rename_columns(["img", "label"]).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, hub_folder / "train.parquet")
    source = open_source(f"hub:{hub_folder}")
    assert source.classes == CLASSES
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert_same_pictures(source)


def test_a_hub_data_set_without_images_is_refused(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    (hub_folder / "train.csv").write_text("text,label\nhello,1\n")
    with pytest.raises(SourceError, match="expected a column 'image' of images, got text, label"):
        open_source(f"hub:{hub_folder}")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="hub:some-one/some-images: could not be loaded") as error:
        open_source("some-one/some-images")
    assert "\n" not in str(error.value)


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
