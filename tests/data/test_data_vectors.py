"""Sources of vectors: .npy files, columns of tables, arrays; what is refused, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlens import InvalidInputError, SourceError, open_source

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = ["cat", "dog", "cat", None, "dog", "cat"]


def gathered(source: Any) -> np.ndarray:
    return np.stack(list(source.inputs))


def table(**columns: Any) -> pa.Table:
    return pa.table({"embedding": pa.array(list(X)), **columns})


def test_a_npy_file_is_mapped_and_its_rows_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    source = open_source(tmp_path / "x.npy")
    assert isinstance(source.vectors.values, np.memmap)
    assert source.uris[2] == f"{tmp_path / 'x.npy'}#2"
    assert source.labels.tolist() == [-1] * 6
    np.testing.assert_array_equal(gathered(source), X)
    np.testing.assert_array_equal(gathered(source.subset([4, 1])), X[[4, 1]])
    with pytest.raises(SourceError, match=r"x.npy#2: .*a vector, not an image"):
        source.load(2)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_widths_of_numbers_become_float32(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "x.npy", X.astype(dtype))
    found = gathered(open_source(tmp_path / "x.npy"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X.astype(dtype).astype(np.float32))


def test_the_table_next_to_a_npy_file_says_what_is_known(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    rows = [f"{label or ''},s3://shop/{i}.jpg,{i}" for i, label in enumerate(LABELS)]
    (tmp_path / "x.csv").write_text("\n".join(["label,uri,price", *rows]))
    source = open_source(tmp_path / "x.npy")
    assert [source.label_name(i) for i in range(6)] == LABELS
    assert source.uris[1] == "s3://shop/1.jpg"
    assert source.metadata(3) == {"price": 3}
    (tmp_path / "x.csv").write_text("label\ncat\n")
    with pytest.raises(SourceError, match="for each of the 6 vectors, got 1 rows"):
        open_source(tmp_path / "x.npy")


@pytest.mark.parametrize("fixed", [False, True])
def test_a_parquet_column_of_lists_is_a_source(tmp_path: Path, fixed: bool) -> None:
    kind = pa.list_(pa.float32(), 4) if fixed else pa.list_(pa.float64())
    columns = {
        "vec": pa.array(list(X), kind),
        "label": LABELS,
        "url": [f"https://x/{i}" for i in range(6)],
    }
    pq.write_table(pa.table({**columns, "price": range(6)}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", vector_column="vec")
    np.testing.assert_array_equal(gathered(source), X)
    assert [source.label_name(i) for i in range(6)] == LABELS
    assert source.uris[5] == "https://x/5"
    assert source.metadata(2) == {"price": 2}
    with pytest.raises(
        SourceError, match=r"expected a column 'nope', got vec, label.* --vector-column"
    ):
        open_source(tmp_path / "x.parquet", vector_column="nope")


def test_parquet_in_pieces_and_without_names(tmp_path: Path) -> None:
    for piece in range(2):
        part = table(label=LABELS).slice(3 * piece, 3)
        pq.write_table(part, tmp_path / f"train-0000{piece}-of-00002.parquet")
    source = open_source(f"{tmp_path}#train")
    np.testing.assert_array_equal(gathered(source), X)
    assert source.classes == ("cat", "dog")


def test_images_come_first_unless_the_vectors_are_named(tmp_path: Path) -> None:
    both = table(image=[{"bytes": b"x", "path": None}] * 6)
    pq.write_table(both, tmp_path / "both.parquet")
    assert open_source(tmp_path / "both.parquet").vectors is None
    assert open_source(tmp_path / "both.parquet", vector_column="embedding").vectors is not None
    pq.write_table(table(path=[f"{i}.jpg" for i in range(6)]), tmp_path / "paths.parquet")
    source = open_source(tmp_path / "paths.parquet")
    assert source.uris[0].endswith("/0.jpg")
    assert "read as vectors, of column 'embedding'" in source.notes[-1]
    assert open_source(tmp_path / "paths.parquet", image_column="path").vectors is None


def test_tables_and_arrays_in_memory() -> None:
    frame = pandas.DataFrame({"embedding": list(X), "label": LABELS, "price": range(6)})
    for data in (frame, table(label=LABELS, price=range(6))):
        source = open_source(data)
        np.testing.assert_array_equal(gathered(source), X)
        assert [source.label_name(i) for i in range(6)] == LABELS
        assert source.metadata(1) == {"price": 1}
    np.testing.assert_array_equal(gathered(open_source(X)), X)


def test_a_row_without_a_vector_is_not_finite(tmp_path: Path) -> None:
    holes = pa.table({"embedding": pa.array([*X[:2].tolist(), None])})
    pq.write_table(holes, tmp_path / "x.parquet")
    found = gathered(open_source(tmp_path / "x.parquet"))
    assert np.isfinite(found).all(axis=1).tolist() == [True, True, False]


def test_what_is_no_table_of_vectors_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", X[0])
    np.save(tmp_path / "whole.npy", X.astype(np.int64))
    np.save(tmp_path / "none.npy", X[:0])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, kind, message in (
        ("flat", InvalidInputError, r"expected shape \(n, d\), got \(4,\)"),
        ("whole", InvalidInputError, "expected floating numbers, got int64"),
        ("none", SourceError, "no vectors; expected at least one"),
        ("objects", SourceError, "not a whole .npy file of numbers"),
        ("cut", SourceError, "not a whole .npy file of numbers"),
        ("empty", SourceError, "not a whole .npy file of numbers"),
    ):
        with pytest.raises(kind, match=message):
            open_source(tmp_path / f"{name}.npy")
    ragged = pa.table({"embedding": pa.array([[1.0, 2.0], [3.0]])})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(InvalidInputError, match="expected 2 values in each row, got 1 in row 1"):
        open_source(tmp_path / "ragged.parquet")


def test_names_of_an_exported_index_stay_as_they_are(tmp_path: Path) -> None:
    names = ["digits#3", "hub:a/b#train#7", "/p/x.npy#5", "https://a.b/1.jpg", "file:///a%FF.jpg"]
    table = pa.table({"uri": [*names, "a.jpg"], "embedding": [[1.0, 2.0]] * 6})
    pq.write_table(table, tmp_path / "v.parquet")
    assert list(open_source(tmp_path / "v.parquet").uris) == [*names, str(Path("a.jpg").absolute())]
