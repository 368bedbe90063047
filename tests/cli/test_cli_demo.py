"""``hashlens demo``, whole: what it prints, what it leaves, and that this can be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import run
from PIL import Image

from hashlens import SourceError
from hashlens.workflows.demo import NEXT_COMMANDS, demo_sources


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The digits demo: about a minute."""
    out = tmp_path_factory.mktemp("demo") / "hashlens-demo"
    result = run("demo", "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


def test_scores_are_as_promised(demo):
    out, _ = demo
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["bits"] == 48
    assert (found["n_database"], found["n_queries"]) == (1438, 359)
    assert found["bcs"]["precision@10"] >= 0.95
    assert found["hds"]["precision@10"] >= found["bcs"]["precision@10"] - 0.01
    assert found["bcs"]["recall@1000"] == 1.0
    assert found["classification_error"] <= 0.03


def test_output_ends_with_the_next_three_commands(demo):
    out, result = demo
    assert result.stdout.endswith(f"{NEXT_COMMANDS}\n")
    assert len(NEXT_COMMANDS.splitlines()) == 3
    assert "classification error" in result.stdout
    assert f"hashlens search {out / 'index'} '" in result.stdout
    modes = [line.split()[0] for line in result.stdout.splitlines()[5:9]]
    assert modes == ["BCS", "ACS", "HDS", "ES"]


def test_index_of_the_demo_can_be_searched(demo):
    out, _ = demo
    result = run("search", out / "index", "digits#1", "-k", 5, "--json")
    assert result.exit_code == 0, result.stderr
    assert "digits#" in result.stdout


def test_sources_with_parts_are_used_as_they_are_split(data_dir):
    train, test = demo_sources("mnist", str(data_dir / "mnist"))
    assert (len(train), len(test)) == (60_000, 10_000)


def test_known_names_are_found_through_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("HASHLENS_DATA", str(data_dir))
    assert demo_sources("cifar10")[1].spec == f"{data_dir / 'cifar10'}#test"


def test_a_folder_is_split_with_a_fixed_seed(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    train, test = demo_sources(str(tmp_path))
    assert (len(train), len(test)) == (16, 4)
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert not set(train.uris) & set(test.uris)
    assert list(test.uris) == list(demo_sources(str(tmp_path))[1].uris)


def test_too_few_images_and_no_images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(SourceError, match="too few to hold some out"):
        demo_sources(str(tmp_path))
    result = run("demo", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
