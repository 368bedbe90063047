"""Vectors through the commands: train, index, search, evaluate, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from hashlens import Encoder, HashIndex

RNG = np.random.default_rng(0)
CLASSES = np.repeat(np.arange(3), 60)
X = (RNG.normal(size=(3, 16))[CLASSES] + RNG.normal(0, 0.4, (180, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors with labels, a model that was trained on them, and an index."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "x.npy", X)
    rows = [f"{'abc'[kind]},{i},{i % 2}" for i, kind in enumerate(CLASSES)]
    (folder / "x.csv").write_text("\n".join(["label,price,odd", *rows]))
    np.save(folder / "query.npy", X[7])
    done = run("train", folder / "x.npy", "--out", folder / "m", "--bits", 16, "--json")
    assert done.exit_code == 0, done.output
    made = run(
        *("index", "create", folder / "v.idx", folder / "x.npy", "--model", folder / "m"),
        *("--metadata-columns", "price", "--json"),
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["added"] == 180
    return folder


def test_training_says_what_it_learned_from(home: Path) -> None:
    card = (home / "m" / "README.md").read_text()
    assert "| input | vectors of 16 values, cosine metric |" in card
    assert "Turns a vector into a binary code" in card
    assert Encoder.load(home / "m").classes == ("a", "b", "c")


def test_search_by_vector_finds_the_row_itself(home: Path) -> None:
    found = run(
        "search", home / "v.idx", "--vector", home / "query.npy", "-k", 3, "--mode", "hds", "--json"
    )
    assert found.exit_code == 0, found.output
    (answer,) = json.loads(found.stdout)["results"]
    assert answer["query"] == f"{home / 'query.npy'}#0"
    assert answer["hits"][0]["id"] == 7
    assert answer["hits"][0]["metadata"] == {"price": 7}
    shown = run("search", home / "v.idx", "7", "--vector", home / "query.npy", "-k", 60)
    assert shown.exit_code == 0
    assert f"{home / 'x.npy'}#7" in shown.stdout
    assert "are gone" not in shown.output


def test_evaluate_scores_vectors_and_draws_no_empty_sheet(home: Path) -> None:
    done = run(
        *("evaluate", home / "m", "--database", home / "x.npy", "--queries", home / "x.npy"),
        *("--out", home / "scores", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bcs"]["precision@10"] > 0.9
    assert (home / "scores" / "report.html").is_file()
    assert not (home / "scores" / "sheet.png").exists()


def test_without_labels_and_as_onnx(home: Path, tmp_path: Path) -> None:
    done = run("train", home / "x.npy", "--out", tmp_path / "u", "--bits", 8, "--unsupervised")
    assert done.exit_code == 0, done.output
    exported = run("export", tmp_path / "u", "--onnx", tmp_path / "u.onnx")
    assert exported.exit_code == 0, exported.output
    codes = [Encoder.load(tmp_path / name).encode(X)[0] for name in ("u", "u.onnx")]
    np.testing.assert_array_equal(*codes)


def test_a_vector_that_is_not_finite_is_skipped_and_named(home: Path, tmp_path: Path) -> None:
    bad = X[:4].copy()
    bad[1] = np.nan
    bad[3] = 0
    np.save(tmp_path / "bad.npy", bad)
    run("index", "create", tmp_path / "v.idx", "--model", home / "m")
    done = run("index", "add", tmp_path / "v.idx", tmp_path / "bad.npy")
    assert done.exit_code == 0, done.output
    assert "skipped row 1: NaN or infinity" in done.output
    assert "skipped row 3: a vector of zeros, which has no direction" in done.output
    assert "added 2, skipped 2" in done.stdout
    strict = run("index", "add", tmp_path / "v.idx", tmp_path / "bad.npy", "--strict")
    assert strict.exit_code == 1
    assert "row" in strict.output
    trained = run(
        "train", tmp_path / "bad.npy", "--out", tmp_path / "m", "--unsupervised", "--bits", 8
    )
    assert trained.exit_code == 1
    assert "needs at least 16 of them, got 4" in trained.output


def test_what_does_not_fit_is_said_in_one_line(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((2, 9), np.float32))
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for arguments, message in (
        (
            ("train", home / "x.npy", "--out", tmp_path / "m", "--backbone", "resnet9"),
            "goes with images",
        ),
        (("train", home / "x.npy", "--out", tmp_path / "m", "--recipe", "small"), "is for images"),
        (("search", home / "v.idx", "--vector", tmp_path / "wide.npy"), "vectors of 16 floating"),
        (("search", home / "v.idx", "--vector", tmp_path / "no.npy"), "no.npy"),
        (("search", home / "v.idx", tmp_path / "a.jpg"), "takes vectors of 16 floating"),
        (("search", home / "v.idx"), "or --vector FILE.npy"),
        (("index", "add", home / "v.idx", tmp_path / "wide.npy"), "vectors of 16 floating"),
        (
            ("index", "add", home / "v.idx", home / "x.npy", "--metadata-columns", "size"),
            "expected a column size, got odd, price",
        ),
    ):
        done = run(*arguments)
        assert done.exit_code in (1, 2), (arguments, done.output)
        assert message in " ".join(done.output.split()), (arguments, done.output)
        assert "Traceback" not in done.output


def test_an_exported_table_is_a_source_that_keeps_what_is_known(home: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    exported, again = tmp_path / "v.parquet", tmp_path / "again.parquet"
    made = run("train", home / "x.npy", "--out", tmp_path / "u", "--bits", 16, "--unsupervised")
    assert made.exit_code == 0, made.output
    create = ("index", "create", "--model", tmp_path / "u", "--features", "float32")
    done = run(*create, tmp_path / "1.idx", home / "x.npy", "--metadata", "brand=x")
    assert done.exit_code == 0, done.output
    run("index", "update", tmp_path / "1.idx", 3, "--metadata", "size=M")
    run("index", "update", tmp_path / "1.idx", 4, "--metadata", "size=38")
    done = run("index", "export", tmp_path / "1.idx", exported, "--format", "parquet", "--json")
    assert done.exit_code == 0, done.output
    text = "metadata 'size': of several types, or nested; a column of text"
    assert f"note: {text}" in done.stderr
    assert json.loads(done.stdout)["notes"] == [text]
    done = run(*create, tmp_path / "2.idx", exported, "--vector-column", "features", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["added"] == 180
    assert run("index", "export", tmp_path / "2.idx", again, "--format", "parquet").exit_code == 0
    first, second = (parquet.read_table(path) for path in (exported, again))
    assert first.schema.equals(second.schema)
    for name in ("id", "uri", "label", "code", "price", "odd", "brand", "size"):
        assert first[name].equals(second[name]), name
    assert str(first.schema.field("price").type) == "int64"
    with HashIndex.open(tmp_path / "2.idx") as index:
        assert index[3].metadata == {"price": 3, "odd": 1, "brand": "x", "size": "M"}
        assert index[4].metadata == {"price": 4, "odd": 0, "brand": "x", "size": "38"}
        assert index[5].uri == f"{home / 'x.npy'}#5"
        assert index[5].label == "a"
    some = run(*create, tmp_path / "3.idx", exported, "--metadata-columns", "price,brand")
    assert some.exit_code == 0, some.output
    with HashIndex.open(tmp_path / "3.idx") as index:
        assert index[3].metadata == {"price": 3, "brand": "x"}
