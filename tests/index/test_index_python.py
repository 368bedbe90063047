"""What a Python user expects: items, iteration, tables, pictures in a notebook, clear errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixel_encoder import PixelEncoder

from hashlens import HashIndex, HashlensError, Hit, InvalidInputError, unpack_bits
from hashlens.index.protocol import Hits
from hashlens.types import EncodedBatch, SearchTrace


@pytest.fixture
def filled(index: HashIndex, pictures: list[Path]) -> HashIndex:
    index.add(pictures, [f"class {i % 2}" for i in range(12)], [{"n": i} for i in range(12)])
    index.remove(5)
    return index


def test_an_index_says_what_it_is(filled: HashIndex) -> None:
    assert repr(filled) == (
        f"HashIndex({str(filled.path)!r}, 11 images, 48 bits, features of 36 values)"
    )
    filled.close()
    assert "was closed" in repr(filled)


def test_records_are_items_and_iterated(filled: HashIndex, pictures: list[Path]) -> None:
    assert filled[3].uri == str(pictures[3])
    assert filled[np.int64(3)] == filled.get(3)
    assert [record.id for record in filled] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert 3 in filled
    assert 5 not in filled
    assert "3" not in filled
    with pytest.raises(InvalidInputError, match="id 5: no such image"):
        filled[5]


def test_hits_carry_their_codes(filled: HashIndex) -> None:
    ids, codes, _ = filled.encoded()
    by_id = dict(zip(ids.tolist(), codes, strict=True))
    for mode in ("hds", "bcs", "es"):
        hits = filled.search(3, k=4, mode=mode)
        assert [hit.code for hit in hits] == [by_id[hit.id].tobytes() for hit in hits]
    assert "code=" not in repr(hits[0])
    assert repr(hits[0]).startswith("Hit(id=3, uri=")


def test_tables(filled: HashIndex, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = filled.to_arrow()
    assert table.column_names == ["id", "uri", "label", "metadata", "code", "features", "n"]
    assert table["n"].to_pylist() == [record.metadata.get("n") for record in filled]
    ids, codes, features = filled.encoded()
    assert table["id"].to_pylist() == ids.tolist()
    assert table["code"].to_pylist() == [code.tobytes() for code in codes]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist()), features)
    assert table["label"].to_pylist() == [record.label for record in filled]
    filled.export(tmp_path / "x.parquet", "parquet")
    assert pq.read_table(tmp_path / "x.parquet").equals(table)
    filled.remove(ids)
    assert filled.to_arrow().num_rows == 0


def test_tables_of_pandas(filled: HashIndex) -> None:
    pandas = pytest.importorskip("pandas")
    frame = filled.to_pandas()
    assert frame["id"].tolist() == filled.ids().tolist()
    assert frame["uri"].tolist() == [record.uri for record in filled]
    hits = filled.search(3, k=4)
    found = pandas.DataFrame(hits)
    assert list(found.columns) == list(Hit._fields)
    assert found["id"].tolist() == [hit.id for hit in hits]


@pytest.mark.parametrize(
    ("module", "install"), [("pyarrow", r"'hashlens\[parquet\]'"), ("pandas", "pandas")]
)
def test_tables_without_their_library(
    filled: HashIndex, monkeypatch: pytest.MonkeyPatch, module: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HashlensError, match=f"pip install {install}$"):
        filled.to_pandas()


def test_hits_are_pictures_in_a_notebook(index: HashIndex, tmp_path: Path) -> None:
    path = tmp_path / 'a & "b".png'
    Image.new("RGB", (400, 300), "red").save(path)
    index.add([path], ["<b>bold</b>"])
    index.add_encoded(np.zeros((60, 6), np.uint8), np.zeros((60, 36)), ["/gone/<x>.jpg"] * 60)
    hits = index.search(0, k=61)
    page = hits._repr_html_()  # type: ignore[attr-defined]
    assert page.count("<img ") == 1
    assert 'src="data:image/jpeg;base64,' in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "&lt;x&gt;.jpg" in page
    assert "<b>" not in page
    assert "<x>" not in page
    assert "a &amp; &quot;b&quot;.png" in page
    assert "and 11 more" in page
    assert "no hits" in index.search(0, where={"label": "none"})._repr_html_()  # type: ignore[attr-defined]


def _tensor(value: Any) -> Any:
    return pytest.importorskip("torch").tensor(value)


@pytest.mark.parametrize("query", [True, None, 1.5, object(), (1, 2), {"id": 1}, [True], [[1]]])
def test_what_is_no_query_is_refused(filled: HashIndex, query: Any) -> None:
    with pytest.raises(InvalidInputError, match="query: expected an image"):
        filled.search(query)


@pytest.mark.parametrize("image_id", [True, None, "3", 3.0, [3], (3,), slice(0, 2), object()])
def test_what_is_no_id_is_refused(filled: HashIndex, image_id: Any) -> None:
    for ask in (filled.get, filled.__getitem__):
        with pytest.raises(InvalidInputError, match="id: expected one whole number"):
            ask(image_id)
    with pytest.raises(InvalidInputError, match="expected one whole number"):
        filled.update(image_id, label="x")


@pytest.mark.parametrize("ids", [True, [True], None, "3", ["3"], [3.0], [[3]], object(), [None]])
def test_what_are_no_ids_is_refused(filled: HashIndex, ids: Any) -> None:
    asked = [filled.remove] if ids is None else [filled.remove, filled.records, filled.encoded]
    for ask in asked:
        with pytest.raises(InvalidInputError, match="ids: expected whole numbers"):
            ask(ids)
    assert len(filled) == 11


def test_tensors(filled: HashIndex) -> None:
    with pytest.raises(InvalidInputError, match=r"query: expected an image.*got Tensor"):
        filled.search(_tensor(3))
    with pytest.raises(InvalidInputError, match="query: expected an image"):
        filled.search([_tensor(3)])
    with pytest.raises(InvalidInputError, match="id: expected one whole number"):
        filled.get(_tensor(3))
    assert [record.id for record in filled.records(_tensor([3, 1]))] == [3, 1]
    filled.remove(_tensor([3, 1]))
    assert len(filled) == 9


class _Judged(PixelEncoder):
    """An encoder that knows which mode was best on validation images."""

    def __init__(self, mode: str | None) -> None:
        super().__init__()
        self.mode = mode


class _WithoutLatent(PixelEncoder):
    """An encoder of the user's own, which gives codes and features only."""

    def _batch(self, images: Any, strict: bool) -> EncodedBatch:
        return super()._batch(images, strict)._replace(latent=None)


@pytest.mark.parametrize(
    ("best", "features", "by_image", "by_id", "within"),
    [
        (None, "float16", "hds", "hds", "hds"),
        (None, "none", "acs", "bcs", "acs"),
        ("hds", "none", "acs", "bcs", "acs"),
        ("es", "none", "acs", "bcs", "acs"),
        ("es", "float16", "es", "es", "hds"),
        ("acs", "float16", "acs", "bcs", "acs"),
        ("bcs", "float16", "bcs", "bcs", "bcs"),
    ],
)
def test_without_a_mode_the_best_that_fits_is_taken(
    best: str | None,
    features: str,
    by_image: str,
    by_id: str,
    within: str,
    tmp_path: Path,
    pictures: list[Path],
) -> None:
    """By an image, by an id, and within a radius: the mode, and the hits of that mode."""
    with HashIndex.create(tmp_path / "y.idx", _Judged(best), features=features) as index:
        index.add(pictures)
        queries: list[tuple[Any, str, dict[str, Any]]] = [
            (pictures[2], by_image, {}),
            (2, by_id, {}),
            (pictures[2], within, {"radius": 20}),
            ([2, pictures[3]], by_image, {}),
        ]
        for query, mode, options in queries:
            trace = SearchTrace()
            found = index.search(query, 5, trace=trace, **options)
            assert trace.mode == mode
            assert found == index.search(query, 5, mode=trace.mode, **options)


def test_an_encoder_without_latent_values_searches_codes_alone_by_bits(
    tmp_path: Path, pictures: list[Path]
) -> None:
    with HashIndex.create(tmp_path / "y.idx", _WithoutLatent(), features="none") as index:
        index.add(pictures)
        trace = SearchTrace()
        assert index.search(pictures[2], 1, trace=trace)[0].id == 2
        assert trace.mode == "bcs"
        with pytest.raises(InvalidInputError, match="mode acs needs the queries' latent values"):
            index.search(pictures[2], mode="acs")


def test_codes_alone_are_searched_by_latent_values(
    tmp_path: Path, pictures: list[Path], encoder: PixelEncoder
) -> None:
    """The distance is written out; by id, acs is bcs."""
    with HashIndex.create(tmp_path / "y.idx", encoder, features="none") as index:
        index.add(pictures)
        assert index.feature_dim == 0
        index.update(3, image=pictures[4])
        index.sync(pictures[0].parent, pictures)
        (batch,) = encoder.encode_batches([pictures[5]])
        assert batch.latent is not None
        own = batch.latent[0]
        for hit in index.search(pictures[5], mode="acs"):
            bits = unpack_bits(np.frombuffer(hit.code, np.uint8)[None], 48)[0]
            expected = abs(own)[bits != (own >= 0)].sum()
            assert hit.asymmetric == pytest.approx(expected, rel=1e-5)
            assert hit.euclidean is None
        assert f"{hit.hamming} bits, {hit.asymmetric:.4g}" in Hits([hit])._repr_html_()
        by_id, by_bits = (index.search(5, mode=mode) for mode in ("acs", "bcs"))
        assert [hit.id for hit in by_id] == [hit.id for hit in by_bits]
        assert [hit.asymmetric for hit in by_id] == [hit.hamming for hit in by_bits]
    with HashIndex.open(tmp_path / "y.idx", encoder) as again:
        assert again.search(pictures[5], 1)[0].id == 5


@pytest.mark.parametrize(
    "options", [{"k": [3]}, {"mode": ["hds"]}, {"radius": [1]}, {"pool": "x"}, {"where": ["a"]}]
)
def test_a_list_where_one_value_is_meant_is_refused(
    filled: HashIndex, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(options))}: "):
        filled.search(3, **options)


def test_images_of_the_wrong_kind_are_refused(index: HashIndex, encoder: PixelEncoder) -> None:
    for images in (3, None, object()):
        with pytest.raises(HashlensError, match="images: expected a list"):
            index.add(images)  # type: ignore[arg-type]
