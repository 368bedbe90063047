"""Codes of vectors next to other compressions: equal bytes, true recall, queries held out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hashlens.bench import vectors
from hashlens.cli.main import app

WIDTH, SIZE = 80, 10


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """Labelled vectors in clusters; ten have no label."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 5, 1100)
    values = rng.normal(size=(5, WIDTH))[kinds] + rng.normal(0, 0.8, (1100, WIDTH))
    np.save(tmp_path / "embeddings.npy", values.astype(np.float32))
    lines = [f"{row},kind {kind}" if row >= 10 else f"{row}," for row, kind in enumerate(kinds)]
    (tmp_path / "embeddings.csv").write_text("\n".join(["number,label", *lines]) + "\n")
    return tmp_path / "embeddings.npy"


def test_methods_are_compared_at_equal_bytes(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("torch")
    monkeypatch.setattr(vectors, "SECONDS", 0.0)
    command = ["bench", "vectors", str(embeddings), "--bytes", str(SIZE), "--queries", "50"]
    command += ["--out", str(tmp_path / "out"), "--json"]
    answer = CliRunner().invoke(app, command, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout)
    assert (results["n"], results["queries"], results["width"]) == (1050, 50, WIDTH)
    assert results["labelled"]
    bytes_of = {row["method"]: row["bytes"] for row in results["measured"]}
    float_bytes = 4 * WIDTH
    others = {
        "SQ8": WIDTH,
        "SQ4": WIDTH // 2,
        "RaBitQ": WIDTH // 8 + 8,
        "float, exact": float_bytes,
    }
    assert bytes_of.items() >= others.items()
    assert {bytes_of[name] for name in bytes_of.keys() - others.keys()} == {SIZE}
    known = {"ITQ", "learned from labels", "PCA, random rotation, sign", "sign", "PQ", "OPQ"}
    assert bytes_of.keys() >= known | {"PCA, RaBitQ", "PCA, SQ8", "PCA, SQ4"}
    recalls = {(row["method"], row["pool"]): row["recall"] for row in results["measured"]}
    assert recalls["float, exact", 0] == 1.0
    assert all(0.02 < recall <= 1 for recall in recalls.values())
    assert recalls["ITQ", 200] > recalls["ITQ", 0] > 0.1
    assert recalls["SQ8", 0] > recalls["SQ4", 0] > 0.5
    for row in results["measured"]:
        assert 0.2 < row["precision"] <= 1
        assert 0 < row["minimum"] <= row["median"]
    stored = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert stored.pop("command").startswith("hashlens bench vectors")
    assert stored == results
    page = (tmp_path / "out" / "vectors.md").read_text()
    assert all(name in page for name in bytes_of)
    assert (tmp_path / "out" / "vectors.png").stat().st_size > 10_000


def test_queries_are_held_out() -> None:
    values = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)
    sample = vectors.hold_out(values, np.arange(1100), "euclidean", 100, 1)
    assert sorted([*sample.labels, *sample.query_labels]) == list(range(1100))
    np.testing.assert_array_equal(sample.queries, values[sample.query_labels])
    np.testing.assert_array_equal(sample.database, values[sample.labels])
    unit = vectors.hold_out(values, np.arange(1100), "cosine", 100, 1)
    np.testing.assert_allclose(np.linalg.norm(unit.queries, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queries", "500"], "expected at least 1,500 vectors"),
        (["--bytes", "81"], "bytes: expected 1 to 80"),
        (["--metric", "manhattan"], "metric: expected one of cosine, euclidean"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    embeddings: Path, options: list[str], message: str
) -> None:
    pytest.importorskip("faiss")
    command = ["bench", "vectors", str(embeddings), "--queries", "50", *options]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    assert message in answer.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--made", "1040"], "expected at least 1,050 vectors, 50 of them as queries, got 1,040"),
        (["--made", "1060", "--width", "24", "--bytes", "25"], "bytes: expected 1 to 24"),
    ],
)
def test_made_vectors_are_as_many_and_as_wide_as_asked_for(
    options: list[str], message: str
) -> None:
    pytest.importorskip("faiss")
    answer = CliRunner().invoke(app, ["bench", "vectors", "--queries", "50", *options])
    assert answer.exit_code == 1
    assert message in answer.output


def test_a_missing_faiss_is_named(embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    command = ["bench", "vectors", str(embeddings), "--queries", "50"]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    assert "pip install 'hashlens[bench]'" in answer.output


def test_images_are_no_vectors() -> None:
    answer = CliRunner().invoke(app, ["bench", "vectors", "digits"])
    assert answer.exit_code == 1
    assert "expected vectors, got images" in answer.output
