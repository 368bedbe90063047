"""Tables as people have them: other columns, paths, pieces, CSV and list files next to images."""

from __future__ import annotations

import json
import pickle
from base64 import b64encode
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_tables import PICTURES, assert_same_pictures

from hashlens import SourceError, open_source
from hashlens.data.opening import load_image
from hashlens.errors import ImageError
from image_builders import encoded

BYTES = [encoded(image) for image in PICTURES]
WORDS = list("aabbccabc")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NO_BYTES = pa.struct([("bytes", pa.null()), ("path", pa.string())])  # as pyarrow infers it
JUST_PATH = pa.struct([("path", pa.string())])
STRUCTS = (STRUCT, NO_BYTES, JUST_PATH)


def save_pictures(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png" for i in range(len(BYTES))]
    for name, data in zip(names, BYTES, strict=True):
        (folder / name).write_bytes(data)
    return names


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


@pytest.mark.parametrize("image", ["image", "img", "Image", "image_path", "file_name"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label", "Label", "class"])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, image: str, label: str) -> None:
    source = open_source(table(tmp_path / "x.parquet", **{image: BYTES, label: WORDS}))
    assert source.classes == ("a", "b", "c")
    assert_same_pictures(source)


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()),
    ],
)  # fmt: skip
def test_every_kind_of_bytes_is_read(tmp_path: Path, kind: Any) -> None:
    column = (
        pa.array(BYTES, pa.binary()).cast(kind)
        if "dict" not in str(kind)
        else (pa.array(BYTES, pa.binary()).dictionary_encode())
    )
    assert_same_pictures(open_source(table(tmp_path / "x.parquet", image=column)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), *STRUCTS])
@pytest.mark.parametrize("absolute", [False, True])
def test_paths_are_read_next_to_the_table(tmp_path: Path, kind: Any, absolute: bool) -> None:
    names = save_pictures(tmp_path / "files")
    paths = [f"{tmp_path if absolute else ''}/files/{name}"[not absolute :] for name in names]
    values = [{"bytes": None, "path": path} for path in paths] if kind in STRUCTS else paths
    source = open_source(table(tmp_path / "x.parquet", image=pa.array(values, kind)))
    assert_same_pictures(source)
    assert_same_pictures(pickle.loads(pickle.dumps(source)))


def test_paths_of_windows_and_texts_that_are_no_paths(tmp_path: Path) -> None:
    names = save_pictures(tmp_path / "files")
    paths = [f"files\\{name}" for name in names]
    assert_same_pictures(open_source(table(tmp_path / "x.parquet", image=paths)))
    (tmp_path / "x.csv").write_text("\n".join(["path", *paths]))
    assert_same_pictures(open_source(tmp_path / "x.csv"))
    coded = [b64encode(data * 40).decode() for data in BYTES] + ["x" * 300]
    source = open_source(table(tmp_path / "coded.parquet", image=coded))
    with pytest.raises(ImageError, match=r"coded.parquet#0: expected a path, got a text of \S+ ch"):
        source.load(0)
    with pytest.raises(ImageError, match="name too long"):
        source.load(9)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array([0.0, 1.0, None] * 3), ("0", "1"), [0, 1, -1] * 3),
        (pa.array([7.0, float("nan"), 9.0] * 3), ("7", "9"), [0, -1, 1] * 3),
        (pa.array(["x", None, "y"] * 3, pa.string_view()), ("x", "y"), [0, -1, 1] * 3),
        (pa.array(["x", "", "y"] * 3).dictionary_encode(), ("x", "y"), [0, -1, 1] * 3),
        (pa.array([1, 2, None] * 3, pa.uint8()), ("1", "2"), [0, 1, -1] * 3),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, labels: Any, classes: tuple[str, ...], numbers: list[int]
) -> None:
    for name in ("label", "fine_label"):
        source = open_source(table(tmp_path / "x.parquet", image=BYTES, **{name: labels}))
        assert (source.classes, source.labels.tolist()) == (classes, numbers)
        whole = pq.read_table(tmp_path / "x.parquet")
        assert open_source(whole).labels.tolist() == numbers
        if "dictionary" not in str(labels.type) and "view" not in str(labels.type):
            assert open_source(whole.to_pandas()).labels.tolist() == numbers


def test_names_of_classes_belong_to_the_column_that_is_read(tmp_path: Path) -> None:
    features = {"fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    whole = pa.table({"img": BYTES, "fine_label": [0, 1, 1] * 3, "coarse_label": [0] * 9})
    info = json.dumps({"info": {"features": features}})
    pq.write_table(whole.replace_schema_metadata({"huggingface": info}), tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").classes == ("cat", "dog")
    coarse = open_source(tmp_path / "x.parquet", label_column="coarse_label")
    assert coarse.classes == ("0",)
    assert coarse.metadata(1) == {"fine_label": 1}


def test_a_column_that_is_named_is_read_and_kept_in_the_uri(tmp_path: Path) -> None:
    other = BYTES[::-1]
    path = table(tmp_path / "x.parquet", image=other, photo=BYTES, label=WORDS, kind=WORDS[::-1])
    source = open_source(path, image_column="photo", label_column="kind")
    assert source.uris[2] == f"{path}#photo#2"
    assert source.label_name(0) == WORDS[-1]
    assert_same_pictures(source)
    with pytest.raises(SourceError, match=r"a column 'none', got image, photo, label, kind"):
        open_source(path, image_column="none")
    with pytest.raises(SourceError, match=r"a column 'none'.*--label-column"):
        open_source(path, label_column="none")


def test_other_columns_are_metadata(tmp_path: Path) -> None:
    columns = {
        "image": BYTES, "label": WORDS, "price": [9.5, None, float("nan"), *range(6)],
        "brand": ["x", "", None, *WORDS[:6]], "new": [True] * 9, "tags": [["a", "b"]] * 9,
        "vector": [[0.5, 1.0]] * 9, "thumb": BYTES,
    }  # fmt: skip
    path = table(tmp_path / "x.parquet", **columns)
    for source in (open_source(path), open_source(pq.read_table(path))):
        assert source.metadata(0) == {"price": 9.5, "brand": "x", "new": True, "tags": ["a", "b"]}
        assert source.metadata(1) == source.metadata(2) == {"new": True, "tags": ["a", "b"]}
        assert source.subset([8]).metadata(0)["price"] == 5


def test_the_pieces_of_a_part_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        for piece in range(2):
            rows = slice(5 * piece, 5 * piece + 5)
            table(
                folder / f"{part}-{piece:05}-of-00002.parquet",
                image=BYTES[rows], label=WORDS[rows], n=list(range(9))[rows],
            )  # fmt: skip
    for place in (folder, folder.parent):
        with pytest.raises(SourceError, match=r"name one: \S+#test or \S+#train"):
            open_source(place)
        source = open_source(f"{place}#train")
        assert [source.label_name(i) for i in range(9)] == WORDS
        assert source.uris[6] == f"{folder}/train-00001-of-00002.parquet#1"
        assert source.metadata(6) == {"n": 6}
        assert_same_pictures(pickle.loads(pickle.dumps(source)))
    (folder / "train-00000-of-00002.parquet").unlink()
    assert "1 of the 2 files of train are not there" in open_source(f"{folder}#train").notes


LISTS = {
    "metadata.csv": "file_name,label,price,note\n{0},{1},{2},\n",
    "metadata.jsonl": '{{"file_name": "{0}", "label": "{1}", "price": {2}}}\n',
    "labels.csv": "file,label,price\n{0},{1},{2}\n",
    "labels.tsv": "picture\tlabel\tprice\n{0}\t{1}\t{2}\n",
    "Labels.csv": "name;species;price\n{0};{1};{2}\n",
}


def write_list(path: Path, names: list[str], **options: Any) -> Path:
    template = LISTS[path.name]
    head, _, line = template.rpartition("\n{0}") if not template.startswith("{{") else ("", "", "")
    rows = [
        (f"{{0}}{line}" if head else template).format(name, label, price)
        for price, (name, label) in enumerate(zip(names, WORDS, strict=True))
    ]
    path.write_text((f"{head}\n" if head else "") + "".join(rows), **options)
    return path


@pytest.mark.parametrize("name", LISTS)
def test_a_folder_with_a_list_of_what_its_images_are(tmp_path: Path, name: str) -> None:
    names = [f"photos/{file}" for file in save_pictures(tmp_path / "photos")]
    write_list(tmp_path / name, names, encoding="utf-8-sig")
    for source in (open_source(tmp_path), open_source(tmp_path / name)):
        assert [source.label_name(i) for i in range(9)] == WORDS
        assert source.metadata(3) == {"price": 3}
        assert source.uris[3] == str(tmp_path / "photos" / "3.png")
        assert_same_pictures(source)
        assert source.notes == ()
        assert source.passed_over == {}


def test_lists_without_a_header_and_lists_by_the_name_alone(tmp_path: Path) -> None:
    names = save_pictures(tmp_path / "photos" / "deep")
    lines = "".join(f"{name},{word}\n" for name, word in zip(names, WORDS, strict=True))
    (tmp_path / "photos" / "labels.csv").write_text(lines)
    assert [open_source(tmp_path / "photos").label_name(i) for i in range(9)] == WORDS
    stems = "".join(f"{i},{word}\n" for i, word in enumerate(WORDS))
    (tmp_path / "photos" / "labels.csv").write_text("id,breed\n" + stems)
    assert [open_source(tmp_path / "photos").label_name(i) for i in range(9)] == WORDS


def test_numbers_with_a_decimal_comma(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    path = tmp_path / "metadata.csv"
    path.write_text("file;price;size\n0.png;12,5;3\n1.png;7;1,2 m\n")
    assert open_source(tmp_path).metadata(0) == {"price": 12.5, "size": "3"}
    path.write_text('file,price\n0.png,"12,5"\n')
    assert open_source(tmp_path).metadata(0) == {"price": "12,5"}


def test_what_a_list_leaves_open_is_said(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,price\n0.png,1\nnone.png,2\n")
    source = open_source(tmp_path)
    assert source.classes == ()
    assert "8 images have no row in metadata.csv" in source.notes
    assert "1 rows of metadata.csv name no image here, or several" in source.notes
    assert (source.metadata(0), source.metadata(1)) == ({"price": 1}, {})


@pytest.mark.parametrize("name", ["train.txt", "train.lst"])
@pytest.mark.parametrize(
    ("labels", "classes", "matrix"),
    [
        ([str(i % 3) for i in range(9)], ("0", "1", "2"), None),
        (WORDS, ("a", "b", "c"), None),
        (["1 0 0", "0 1 1", "0 0 0"] * 3, ("0", "1", "2"), [[1, 0, 0], [0, 1, 1], [0, 0, 0]] * 3),
        (["3 4", "3", "9"] * 3, ("3", "4", "9"), [[1, 1, 0], [1, 0, 0], [0, 0, 1]] * 3),
        (["0 0 1 0", "0 1 0 0", "1 0 0 0"] * 3, ("0", "1", "2"), None),  # one-hot: one class each
        ([""] * 9, (), None),
    ],
)
def test_list_files(
    tmp_path: Path, name: str, labels: list[str], classes: tuple[str, ...], matrix: Any
) -> None:
    names = save_pictures(tmp_path / "my photos")
    lines = [f"my photos/{file} {label}" for file, label in zip(names, labels, strict=True)]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    source = open_source(tmp_path / name)
    assert source.classes == classes
    assert_same_pictures(source)
    if matrix is None:
        assert source.label_matrix is None
    else:
        assert np.array_equal(source.label_matrix, np.array(matrix, bool))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "empty; expected a line for each image"),
        ("x.csv", b"file,label\nb\xff.png,a\n", "not text in UTF-8"),
        ("x.csv", b"file,label\na.png,b,c\n", "expected 2 columns in each row, got 3 in row 2"),
        ("x.jsonl", b"{file\n", "line 1 is not JSON"),
        ("x.jsonl", b"[1]\n", "line 1: expected an object"),
        ("x.txt", b"a.png 1\nnothing\n", "line 2: expected a path and labels, got nothing"),
        ("x.txt", b"a.png 0 1 0\nb.png 0 1\n", "line 2: expected 3 flags 0 or 1, .* got 2"),
        ("x.txt", b"a.png\nb.png 0 1 1\n", "line 1: expected 3 flags 0 or 1, .* got 0"),
    ],
)
def test_damaged_lists_are_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_images_behind_a_uri(
    object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, data in enumerate(BYTES):
        object_store.pipe(f"/shop/photos/{WORDS[i]}/{i}.png", data)
    object_store.pipe("/shop/photos/a/readme.txt", b"-")
    source = open_source("memory://shop/photos")
    assert source.uris[0] == "memory://shop/photos/a/0.png"
    assert source.classes == ("a", "b", "c")
    assert len(source) == 9
    assert_same_pictures(source.subset(np.argsort([Path(uri).name for uri in source.uris])))
    assert len(open_source("memory://shop/photos", exclude=["a"])) == 6
    path = table(tmp_path / "x.parquet", image=BYTES, label=WORDS)
    object_store.pipe("/shop/x.parquet", path.read_bytes())
    remote = open_source("memory://shop/x.parquet")
    assert remote.uris[1] == "memory://shop/x.parquet#1"
    assert_same_pictures(remote)
    archive = tmp_path / "x.zip"
    with ZipFile(archive, "w") as file:
        for i, data in enumerate(BYTES):
            file.writestr(f"{WORDS[i]}/{i}.png", data)
    zipped = open_source(f"zip://::{archive}")
    assert zipped.classes == ("a", "b", "c")
    monkeypatch.chdir(tmp_path)
    assert open_source("zip://::x.zip").uris == zipped.uris  # found from every folder
    assert load_image(zipped.uris[0]).size == (8, 8)
    for spec, message in (
        ("memory://shop/none", "no images found"),
        ("nowhere://x/y", "nowhere://x/y: "),
        (f"zip://::{tmp_path}/none.zip", "cannot be read"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            open_source(spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"memory://shop/gone\.png: cannot be read"):
        load_image("memory://shop/gone.png")
