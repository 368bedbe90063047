"""Adding, filtering, updating, syncing, export: what an index holds."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixel_encoder import PixelEncoder, add_codes, save_pictures

from hashlens import HashIndex, ImageError, IndexStoreError, InvalidInputError, SearchOptions
from hashlens.files import changed_ns, content_digest, path_uri
from hashlens.index import writing
from hashlens.index.exporting import COLUMNS
from hashlens.index.rows import ROW, row_checksum

HOSTILE = [
    "plain",
    "naïve 日本 🦆",
    'it\'s "quoted" \\ back',
    "'; DROP TABLE images; --",
    "nul\0inside",
    "line\nbreak\ttab",
    "lone \udc80 surrogate",
    "%_*?",
    "",
]


def test_add_and_search_by_image_path_and_id(index: HashIndex, pictures: list[Path]) -> None:
    seen: list[int] = []
    labels = [f"class {i % 2}" for i in range(12)]
    report = index.add(pictures, labels, [{"n": i} for i in range(12)], progress=seen.append)
    assert report.ids.tolist() == list(range(12))
    assert report.skipped == ()
    assert sum(seen) == 12
    queries = [pictures[5], str(pictures[5]), np.asarray(Image.open(pictures[5])), 5]
    for mode in ("hds", "bcs", "es"):
        for hits in index.search(queries, k=3, mode=mode):
            assert hits[0].id == 5
            assert hits[0].uri == str(pictures[5])
            assert (hits[0].label, hits[0].metadata, hits[0].hamming) == ("class 1", {"n": 5}, 0)
    assert index.search(pictures[5], k=3) == index.search([pictures[5]], k=3)[0]
    assert index.search(5, k=100)[0].id == 5
    assert len(index.search(5, k=100)) == 12


def test_unreadable_images_are_skipped_or_stop(index: HashIndex, pictures: list[Path]) -> None:
    pictures[3].write_text("no picture")
    report = index.add(pictures)
    assert len(report.ids) == 11
    assert [s.position for s in report.skipped] == [3]
    assert str(pictures[3]) in report.skipped[0].reason
    assert str(pictures[3]) not in {record.uri for record in index.records()}
    with pytest.raises(ImageError, match="picture003"):
        index.add(pictures, strict=True)


def test_interrupted_adding_keeps_what_was_encoded(
    index: HashIndex, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "IMAGES_PER_COMMIT", 64)

    def images() -> Any:
        yield from pictures * 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(images())
    assert len(index) == 64  # a batch of the encoder
    assert index.verify() == []


def test_hostile_text_survives_and_is_found(index: HashIndex) -> None:
    count = len(HOSTILE)
    metadata = [{"text": text, f"key {text}": i} for i, text in enumerate(HOSTILE)]
    add_codes(index, count, labels=HOSTILE, metadata=metadata)
    with HashIndex.open(index.path) as reader:
        records = reader.records()
        assert [r.label for r in records] == HOSTILE
        assert [r.metadata for r in records] == metadata
        for i, text in enumerate(HOSTILE):
            for where in ({"label": text}, {"text": text}, {f"key {text}": i}):
                assert [hit.id for hit in reader.search(0, k=99, where=where)] == [i], where
        assert reader.search(0, where={"label": "nul"}) == []
        assert reader.search(0, where={"text": "nul"}) == []
    assert index.verify() == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, range(10)),
        ({"n": 3}, [3]),
        ({"n": [3, 5.0, "x"]}, [3, 5]),
        ({"n": []}, []),
        ({"n": {">=": 3, "<": 6}}, [3, 4, 5]),
        ({"n": {">": "0"}}, []),
        ({"name": {">=": "item 8"}}, [8, 9]),
        ({"even": True}, [0, 2, 4, 6, 8]),
        ({"even": False}, [1, 3, 5, 7, 9]),
        ({"missing": None}, range(10)),
        ({"missing": 1}, []),
        ({"label": "a", "even": True}, [0, 2, 4]),
        ({"label": ["a", "b"], "n": {"<=": 1}}, [0, 1]),
        ({"label": None}, []),
        ({"n": np.int64(4)}, [4]),
        ({"n": np.array([4, 7])}, [4, 7]),
        ({"label": np.array(["b"])}, range(5, 10)),
        ({"n": 2**70}, []),
        ({"n": 10**400}, []),
        ({"n": {"<": 10**400, ">": -(10**400)}}, range(10)),
        ({'" OR 1=1 --': 1}, []),
    ],
)
def test_where(index: HashIndex, where: dict[str, Any], expected: Any) -> None:
    metadata = [{"n": i, "name": f"item {i}", "even": i % 2 == 0} for i in range(10)]
    add_codes(index, 10, labels=["a"] * 5 + ["b"] * 5, metadata=metadata)
    for _ in range(2):  # computed, then kept
        hits = index.search(0, k=99, mode="bcs", where=where)
        assert sorted(hit.id for hit in hits) == list(expected)


@pytest.mark.parametrize(
    "where", [{"n": {"!=": 1}}, {"n": {}}, {1: 2}, {"n": b"x"}, {"n": object()}]
)
def test_conditions_that_cannot_be_compared_are_refused(index: HashIndex, where: Any) -> None:
    add_codes(index, 2)
    with pytest.raises(InvalidInputError, match="where"):
        index.search(0, where=where)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a"]}, "labels: expected 2, one per image, got 1"),
        ({"labels": ["a", 1.5]}, "label: expected a class name, got 1.5"),
        ({"metadata": [{}, {"x": float("nan")}]}, "u1: metadata: expected text"),
        ({"metadata": [{}, {"x": object()}]}, "u1: metadata: expected text"),
        ({"metadata": [{}, {1: 2}]}, "u1: metadata: expected a mapping with text keys"),
    ],
)
def test_bad_records_are_refused_whole(index: HashIndex, arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        add_codes(index, 2, **arguments)
    assert len(index) == 0


def test_ids_that_are_not_there_change_nothing(index: HashIndex) -> None:
    add_codes(index, 5)
    index.remove(2)
    with pytest.raises(InvalidInputError, match="no image in the index with id 2, 9"):
        index.remove([1, 2, 9])
    with pytest.raises(InvalidInputError, match="each id once"):
        index.remove([1, 1])
    with pytest.raises(InvalidInputError, match="id 2"):
        index.update(2, label="x")
    for call in (index.get, index.search):
        with pytest.raises(InvalidInputError, match="id 2: no such image"):
            call(2)
        with pytest.raises(InvalidInputError, match=f"id {2**70}: no such image"):
            call(2**70)
    for number in (2**63, 2**70):
        with pytest.raises(InvalidInputError, match=f"numbers below .*, got {number}$"):
            index.remove(number)
    assert len(index) == 4
    index.remove(index.ids()[0])  # NumPy's number, not Python's
    assert index.ids().tolist() == [1, 3, 4]


def test_update_by_image_keeps_the_id(
    index: HashIndex, pictures: list[Path], tmp_path: Path
) -> None:
    index.add(pictures[:6], ["a"] * 6)
    index.update(2, image=pictures[9])
    assert index.get(2).uri == str(pictures[9])
    assert index.get(2).label == "a"
    assert [hit.id for hit in index.search(pictures[9], k=1)] == [2]
    assert index.file_digest(2) == content_digest(pictures[9].read_bytes())
    assert index.info().removed == 1
    assert index.compact() == 1
    assert [hit.id for hit in index.search(pictures[9], k=1)] == [2]
    assert np.fromfile(index.path / "ids.2", "<i8").tolist() == [0, 1, 2, 3, 4, 5]


def test_sync_encodes_only_what_changed(
    index: HashIndex, tmp_path: Path, encoder: PixelEncoder
) -> None:
    folder = tmp_path / "photos"
    paths = save_pictures(folder, 8)
    elsewhere = save_pictures(tmp_path / "elsewhere", 1, seed=9)
    index.add([*paths[:4], *elsewhere])
    encoder.encoded = 0

    def sync() -> Any:
        report = index.sync(folder, sorted(folder.glob("*.png")))
        found = encoder.encoded
        encoder.encoded = 0
        return report[:5], found

    assert sync() == ((4, 0, 0, 0, 4), 4)  # added, updated, moved, removed, unchanged
    assert sync() == ((0, 0, 0, 0, 8), 0)
    os.utime(paths[0], (1, 1))  # another time, the same content
    content = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[3].rename(folder / "zz.png")
    paths[4].unlink()
    moved = next(record.id for record in index.records() if record.uri == str(paths[3]))
    assert sync() == ((0, 1, 1, 1, 5), 1)
    assert index.get(moved).uri == str(folder / "zz.png")
    assert sync() == ((0, 0, 0, 0, 7), 0)
    assert len(index) == 8
    assert str(elsewhere[0]) in index.uris()
    paths[1].write_bytes(content)
    paths[2].write_text("broken")
    report = index.sync(folder, sorted(folder.glob("*.png")))
    assert report.updated == 1
    assert [str(paths[2]) in s.name for s in report.skipped] == [True]
    assert len(index) == 8  # the broken file keeps its entry
    with pytest.raises(IndexStoreError, match="holds no images, but 7 in the index"):
        index.sync(folder, [])
    assert len(index) == 8
    assert index.verify() == []


def test_sync_keeps_what_could_not_be_listed(index: HashIndex, tmp_path: Path) -> None:
    closed = save_pictures(tmp_path / "photos" / "closed", 2)
    paths = save_pictures(tmp_path / "photos" / "open", 3, seed=5)
    index.add([*closed, *paths])
    folder = tmp_path / "photos"
    kept = [closed[0].parent, paths[0]]
    assert index.sync(folder, paths[1:2], kept=kept)[:5] == (0, 0, 0, 1, 1)
    assert sorted(index.uris()) == sorted(map(str, [*closed, *paths[:2]]))


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_words_are_compared_in_one_form_of_unicode(
    index: HashIndex, stored: str, asked: str
) -> None:
    def written(text: str) -> str:
        return unicodedata.normalize(stored, text)

    def wanted(text: str) -> str:
        return unicodedata.normalize(asked, text)

    metadata = [{written("größe"): 5, "place": written("Orléans")}, {"place": "Paris"}, {}]
    add_codes(index, 3, labels=[written("café"), "tea", None], metadata=metadata)
    for where in (
        {"label": wanted("café")},
        {"label": [wanted("café"), "milk"]},
        {wanted("größe"): 5},
        {wanted("größe"): {">": 4}},
        {"place": wanted("Orléans")},
        {"place": {"<": wanted("Orlêans")}},
    ):
        assert [hit.id for hit in index.search(0, k=9, mode="bcs", where=where)] == [0]
    index.update(1, label=wanted("thé"))
    assert index.label_counts() == {"café": 1, "thé": 1, None: 1}
    with index.store.writing() as (connection, *_):  # as older versions wrote it
        label = unicodedata.normalize("NFD", "café")
        row = list(connection.execute(f"SELECT {ROW} FROM images WHERE id = 1").fetchone())
        values = label, row_checksum(*row[:2], label, *row[3:7])
        connection.execute("UPDATE images SET label = ?, checksum = ? WHERE id = 1", values)
    assert index.label_counts() == {"café": 2, None: 1}
    found = index.search(0, k=9, mode="bcs", where={"label": wanted("café")})
    assert sorted(hit.id for hit in found) == [0, 1]


def test_exports_hold_the_living_images(index: HashIndex, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    parquet = pytest.importorskip("pyarrow.parquet")
    add_codes(index, 30, labels=["é"] * 30, metadata=[{"n": i} for i in range(30)])
    _, codes, features = index.encoded()
    for removed in (0, 2):
        if removed:
            index.remove([4, 5])
            index.replace_encoded([1], codes[7:8], features[7:8])
        out = tmp_path / f"out{removed}"
        ids, codes, features = index.encoded()
        for kind in ("faiss", "parquet", "numpy"):
            index.export(out.with_suffix(f".{kind}"), kind)
        flat = faiss.read_index_binary(str(out.with_suffix(".faiss")))
        distances, found = flat.search(codes, 1)
        assert flat.ntotal == len(ids)
        assert (distances == 0).all()
        expected = index.search_encoded(codes, None, SearchOptions(1, mode="bcs")).ids
        np.testing.assert_array_equal(found, expected)
        table = parquet.read_table(out.with_suffix(".parquet")).to_pylist()
        assert [row["id"] for row in table] == ids.tolist()
        assert [row["code"] for row in table] == [bytes(code) for code in codes]
        np.testing.assert_array_equal([row["features"] for row in table], features)
        assert json.loads(table[3]["metadata"]) == {"n": int(ids[3])}
        folder = out.with_suffix(".numpy")
        np.testing.assert_array_equal(np.load(folder / "codes.npy"), codes)
        np.testing.assert_array_equal(np.load(folder / "features.npy"), features)
        lines = (folder / "records.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ids.tolist()
    with pytest.raises(IndexStoreError, match="exists already"):
        index.export(out.with_suffix(".faiss"), "faiss")
    with pytest.raises(InvalidInputError, match="expected one of faiss, parquet, numpy"):
        index.export(tmp_path / "x", "csv")


METADATA: list[dict[str, Any]] = [
    {"price": 3.5, "brand": "x", "size": 38, "new": True, "tags": ["a", "b"], "id": 7},
    {"price": 4, "brand": "é \udcff", "size": "M", "new": None, "big": 2**70, "at": {"x": 1}},
    {"price": 2**60, "count": -3, "size": False, "tags": []},
    {},
]


def test_a_table_has_a_column_for_each_key_of_the_metadata(
    index: HashIndex, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    add_codes(index, 5, metadata=[{"gone": 1}, *METADATA])
    index.remove([0])
    notes = index.export(tmp_path / "x.parquet", "parquet")
    text = "of several types, or nested; a column of text"
    assert sorted(notes) == [
        f"metadata 'at': {text}",
        f"metadata 'big': {text}",
        "metadata 'id': the name of another column; in column metadata alone",
        f"metadata 'size': {text}",
    ]
    table = parquet.read_table(tmp_path / "x.parquet")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    types = {name: str(table.schema.field(name).type) for name in columns}
    assert columns["id"] == [1, 2, 3, 4]
    assert [json.loads(each or "{}") for each in columns["metadata"]] == METADATA
    assert {name: types[name] for name in columns if name not in COLUMNS} == {
        "price": "double",
        "brand": "string",
        "size": "string",
        "new": "bool",
        "tags": "list<element: string>",
        "big": "string",
        "at": "string",
        "count": "int64",
    }
    assert columns["price"] == [3.5, 4.0, 2.0**60, None]
    assert columns["brand"] == ["x", "é \\udcff", None, None]
    assert columns["size"] == ["38", "M", "false", None]
    assert columns["new"] == [True, None, None, None]
    assert columns["tags"] == [["a", "b"], None, [], None]
    assert columns["big"][1] == str(2**70)
    assert columns["at"][1] == '{"x": 1}'
    assert columns["count"] == [None, None, -3, None]
    assert index.to_arrow()["size"].to_pylist() == columns["size"]
    index.export(tmp_path / "lance", "lancedb")
    assert parquet.read_table(tmp_path / "lance")["price"].to_pylist() == columns["price"]


def test_sync_leaves_rows_of_parquet_files_and_labels_of_renamed_images(
    index: HashIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    paths = save_pictures(folder, 3)
    index.add(paths, labels=["boots", "boots", "shoes"])
    table = folder / "more" / "x.parquet"
    index.add_encoded(np.zeros((1, 6), np.uint8), np.zeros((1, 36)), [f"{table}#17"])
    paths[0].rename(folder / "zz.png")
    (folder / "hats").mkdir()
    paths[2].rename(folder / "hats" / "hat.png")  # to another class
    found = sorted(folder.rglob("*.png"))
    labels = [path.parent.name if path.parent != folder else None for path in found]
    assert index.sync(folder, found, labels)[:5] == (0, 0, 2, 0, 1)
    assert [(Path(r.uri).name, r.label) for r in index.records()] == [
        ("zz.png", "boots"),
        ("picture001.png", "boots"),
        ("hat.png", "hats"),
        ("x.parquet#17", None),
    ]
    hat = index.records()[2].id
    index.update(hat, label="caps")
    (folder / "hats" / "hat.png").rename(folder / "hats" / "cap.png")  # within its class
    found = sorted(folder.rglob("*.png"))
    labels = [path.parent.name if path.parent != folder else None for path in found]
    assert index.sync(folder, found, labels)[:5] == (0, 0, 1, 0, 2)
    assert (Path(index.get(hat).uri).name, index.get(hat).label) == ("cap.png", "caps")
    (folder / "hats" / "cap.png").rename(folder / "hats" / "top.png")
    monkeypatch.chdir(tmp_path)
    found = sorted(Path("photos").rglob("*.png"))
    assert index.sync(folder, found, ["x"] * 3)[:5] == (0, 0, 1, 0, 2)
    assert (Path(index.get(hat).uri).name, index.get(hat).label) == ("top.png", "caps")
    assert index.verify() == []


def test_arrays_of_numpy_are_taken_for_lists(index: HashIndex, pictures: list[Path]) -> None:
    codes, features = np.zeros((2, 6), np.uint8), np.zeros((2, 36))
    for labels in (np.array([3, 4]), np.array(["3", "4"])):
        index.add_encoded(codes, features, np.array(["u", "v"]), labels=labels)
    names = np.array([str(path) for path in pictures])
    with pytest.raises(InvalidInputError, match="labels: expected 12, one per image, got 13"):
        index.add(names, labels=["x"] * 13)
    index.add(names, labels=np.arange(12))
    assert [r.label for r in index.records()][:4] == ["3", "4"] * 2
    assert index.verify() == []


def test_one_image_is_not_taken_for_a_list(index: HashIndex, pictures: list[Path]) -> None:
    for image in (pictures[0], str(pictures[0]), pictures[0].read_bytes()):
        with pytest.raises(InvalidInputError, match="expected a list, got one image"):
            index.add(image)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="labels: expected one per image, got 3 for more"):
        index.add(iter(pictures), labels=["a", "b", "c"])
    assert len(index) == 0


def test_names_that_are_no_text(tmp_path: Path, encoder: PixelEncoder) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.idx")
    model = tmp_path / os.fsdecode(b"mod\xe9l")
    with HashIndex.create(path, encoder, model=model) as index:
        add_codes(index, 2)
        assert index.model == str(model)
    with HashIndex.open(path) as index:
        assert (len(index), index.verify()) == (2, [])


def test_places_where_no_index_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IndexStoreError, match="give the index one of its own"):
        HashIndex.create(".", bits=8, feature_dim=0)
    for action in (HashIndex.open, lambda path: HashIndex.create(path, bits=8, feature_dim=0)):
        with pytest.raises(IndexStoreError, match="file name too long; check the name"):
            action("x" * 300)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "module"), [("faiss", "faiss"), ("parquet", "pyarrow"), ("numpy", "numpy")]
)
def test_an_export_into_a_missing_folder_is_one_line(
    index: HashIndex, tmp_path: Path, kind: str, module: str
) -> None:
    pytest.importorskip(module)
    with pytest.raises(IndexStoreError, match="make its folder") as error:
        index.export(tmp_path / "missing" / "x", kind)
    assert "\n" not in str(error.value)


def test_an_empty_index_answers(index: HashIndex) -> None:
    codes, features = np.zeros((2, 6), np.uint8), np.zeros((2, 36), np.float32)
    for mode in ("hds", "bcs", "es"):
        assert index.search_hits(codes, features, SearchOptions(5, mode=mode)) == [[], []]
    assert (index.search([]), index.duplicates(3).groups, index.compact()) == ([], [], 0)
    assert index.verify() == []
    assert index.add([]).ids.tolist() == []


def test_codes_alone(tmp_path: Path) -> None:
    with HashIndex.create(tmp_path / "x.idx", bits=8, feature_dim=0) as index:
        index.add_encoded(np.arange(5, dtype=np.uint8)[:, None], None, ["u"] * 5)
        assert [hit.id for hit in index.search(3, k=2, mode="bcs")] == [3, 1]
        assert index.search(3, k=2) == index.search(3, k=2, mode="bcs")
        with pytest.raises(InvalidInputError, match="only codes are held; use acs or bcs"):
            index.search(3, mode="hds")
        assert index.verify() == []


def test_without_an_encoder_images_are_refused(index: HashIndex, pictures: list[Path]) -> None:
    with HashIndex.open(index.path, read_only=True) as reader:
        with pytest.raises(IndexStoreError, match="opened without an encoder"):
            reader.search(pictures[0])
        with pytest.raises(IndexStoreError, match="opened without an encoder"):
            reader.add(pictures)
        with pytest.raises(IndexStoreError, match="opened read-only"):
            reader.add_encoded(np.zeros((1, 6), np.uint8), np.zeros((1, 36)), ["u"])
    with pytest.raises(IndexStoreError, match="was closed; open it again"):
        reader.search(0)


@pytest.mark.parametrize("time", [1_600_000_000, 4_000_000_000], ids=["past", "ahead"])
@pytest.mark.parametrize("swap", ["exchange", "replace"])
def test_sync_notices_files_of_equal_size_and_time(
    index: HashIndex, tmp_path: Path, encoder: PixelEncoder, swap: str, time: int
) -> None:
    """Also where files claim to be younger than the clock says, as after it was set back."""
    folder = tmp_path / "photos"
    paths = save_pictures(folder, 3)
    size = max(path.stat().st_size for path in paths)
    for path in paths:  # a PNG may be followed by anything
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (time, time))
    index.sync(folder, paths)
    before = {hit.uri: hit.code for hit in index.search(paths[0], k=3, mode="bcs")}
    first, second, aside = paths[0], paths[1], tmp_path / "aside.png"
    if swap == "exchange":
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
    else:
        shutil.copy2(second, aside)
        aside.replace(first)
    assert first.stat().st_mtime == time
    report = index.sync(folder, paths)
    assert (report.added, report.removed) == (0, 0)
    assert report.updated == (2 if swap == "exchange" else 1)
    after = {hit.uri: hit.code for hit in index.search(paths[0], k=3, mode="bcs")}
    assert after[path_uri(first)] == before[path_uri(second)]


def test_sync_reads_every_file_when_asked(index: HashIndex, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = save_pictures(folder, 2)
    index.sync(folder, paths)
    old = len(paths[0].read_bytes())
    other = save_pictures(tmp_path / "other", 1, seed=7)[0].read_bytes()
    paths[0].write_bytes(other.ljust(old, b"\0"))
    status = paths[0].stat()
    # As after a change that left no trace in size and times.
    known = {"size": status.st_size, "mtime_ns": changed_ns(status)}
    writing.update_records(index.store, [(0, known)])
    assert index.sync(folder, paths).updated == 0
    assert index.sync(folder, paths, verify_content=True).updated == 1
    assert index.sync(folder, paths, verify_content=True).updated == 0


def test_rows_that_are_relocated_keep_their_column(index: HashIndex, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "shop.parquet").write_bytes(b"")
    ends = ["shop.parquet#front#3", "shop.parquet#4"]
    codes, features = np.zeros((2, index.bits // 8), np.uint8), np.zeros((2, index.feature_dim))
    index.add_encoded(codes, features, [f"{tmp_path / 'old'}/{end}" for end in ends])
    assert index.relocate(tmp_path / "old", new) == (2, 0)
    assert [record.uri for record in index.records()] == [f"{new}/{end}" for end in ends]


def test_another_picture_and_what_is_known_of_it_come_in_one_commit(
    index: HashIndex, pictures: list[Path]
) -> None:
    index.add(pictures[:2], ["old", "other"])
    before = index.info().commit
    index.update(0, label="new", metadata={"a": 1}, image=pictures[1])
    assert index.info().commit == before + 1
    record = index.get(0)
    assert (record.uri, record.label, record.metadata) == (str(pictures[1]), "new", {"a": 1})
    assert [hit.hamming for hit in index.search(0, k=2)] == [0, 0]
    assert index.verify() == []
