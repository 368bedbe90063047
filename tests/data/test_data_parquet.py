"""Tables of images as sources: columns of labels, damage, row groups."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_tables import PICTURES, assert_same_pictures, write_table

from hashlens import ImageError, SourceError, open_source
from hashlens.data import tables
from hashlens.data.labels import require_labels
from hashlens.data.opening import load_image
from image_builders import CLASSES, encoded, picture


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
        (
            [0.5, 1.0, 2.0] * 3,
            None,
            "whole numbers, words, or lists of either, got 0.5 of type float",
        ),
        ([{"a": 1}] * 9, None, "got .'a': 1. of type dict"),
        ([[0.5]] * 9, None, "got 0.5 of type float"),
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
    with pytest.raises(SourceError, match=r"'image', got picture, label; .*--image-column"):
        open_source(path)
    pq.write_table(pa.table({"image": [1.5], "label": [1]}), path)
    with pytest.raises(SourceError, match=r"must hold encoded images.*got double"):
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


def test_a_table_that_is_cut_while_it_is_open_ends_nothing(tmp_path: Path) -> None:
    """Were it mapped, reading behind its end would end the process with SIGBUS."""
    path = str(write_table(tmp_path / "x.parquet", images=[bytes(200_000)] * 9, group=1))
    script = (
        "import os; from hashlens import SourceError; from hashlens.data import tables\n"
        f"store = tables.ParquetImages({path!r}); os.truncate({path!r}, 100)\n"
        "try: store.read(8)\n"
        "except SourceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "row group 8 is damaged" in done.stdout


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


def test_a_changed_table_is_read_again(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", [0] * 9)
    before = load_image(f"{path}#0")
    write_table(path, [0] * 4, images=[encoded(picture("stripe", 77, 16))] * 4)
    assert before.size == (8, 8)
    assert load_image(f"{path}#0").size == (16, 16)


def test_row_groups_beyond_the_cache_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CACHE_BYTES", 1)
    source = open_source(write_table(tmp_path / "x.parquet", [0] * 9, group=2))
    assert_same_pictures(source)
    with ThreadPoolExecutor(4) as pool:
        rows = [*range(9)] * 20
        images = list(pool.map(source.load, rows))
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(PICTURES[row]))
