"""The experiment on a collection, and growing one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from hashlens import InvalidInputError, SourceError, open_source
from hashlens.cli.main import app
from hashlens.paper.products import ProductsRun, grow
from hashlens.paper.runs import Products


def test_a_grown_collection_keeps_its_images_and_changes_the_copies(class_folder: Path) -> None:
    source = open_source(class_folder).subset([3, 1, 30])
    grown = grow(source, 8, seed=0)
    assert len(grown) == len(grown.store) == 8
    np.testing.assert_array_equal(grown.labels, source.labels[[0, 1, 2, 0, 1, 2, 0, 1]])
    for row in range(3):
        np.testing.assert_array_equal(np.asarray(grown.load(row)), np.asarray(source.load(row)))
        assert grown.uris[row] == source.uris[row]
    first, second = np.asarray(grown.load(3)), np.asarray(grown.load(6))
    assert first.shape == np.asarray(source.load(0)).shape
    assert (first != second).any()
    np.testing.assert_array_equal(first, np.asarray(grow(source, 8, seed=0).load(3)))
    assert (first != np.asarray(grow(source, 8, seed=1).load(3))).any()
    assert grow(source, 8, seed=1).spec != grown.spec  # features are kept by it
    assert len(set(grown.uris)) == 8
    with pytest.raises(InvalidInputError, match="at least the 3 images, got 2"):
        grow(source, 2, seed=0)


def test_queries_are_left_out_of_their_own_results(tmp_path: Path) -> None:
    settings = Products(
        bits=16,
        queries=30,
        held_out=0.1,
        training={"recipe": "small", "epochs": 1, "batch_size": 32},
        images=200,
    )
    quiet = Console(quiet=True)
    run = ProductsRun(open_source("digits"), settings, tmp_path, console=quiet).prepared()
    assert len(run.collection) == 200
    train, held_out = run.split()
    assert not set(train) & set(held_out)
    scores = run.run()["scores"]
    assert set(scores["ways"]) == {"es", "bcs", "acs", "hds"}
    assert scores["held_out"] == len(held_out)
    assert 0 <= scores["accuracy"] <= 1
    for way in ("es", "bcs", "acs", "hds"):
        for query, nearest in zip(
            scores["nearest"]["queries"], scores["nearest"][way], strict=True
        ):
            assert query not in nearest
    model = next(tmp_path.glob("model-*"))
    grown = replace(run, scale=500, model=model, without_h=model)
    assert "grown to 500" in grown.describe()
    kept = grown.run()
    assert kept["configuration"]["scale"] == 500
    ways = kept["scores"]["ways"]
    assert ways["without h"]["precision"] == ways["es"]["precision"]  # the same F7


def test_command_line(tmp_path: Path, class_folder: Path) -> None:
    arguments = ["reproduce", "products", str(class_folder), "--quick", "--out"]
    answer = CliRunner().invoke(
        app, [*arguments, str(tmp_path / "a"), "--epochs", "1", "--bits", "16", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["scores"]["bits"] == 16
    page = Path(found["report"]).read_text()
    assert "left out of its own results" in page
    assert page.count("<img") == 2


def test_one_class_is_refused(tmp_path: Path) -> None:
    digits = open_source("digits")
    one = digits.subset(np.flatnonzero(digits.labels == 1))
    settings = Products(bits=16, queries=5, held_out=0.1, training={})
    with pytest.raises(SourceError, match="at least two classes"):
        ProductsRun(one, settings, tmp_path).prepared()
