"""``hashlens inspect``: statistics, the stored radius, and the page."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from command_line import run
from PIL import Image

from hashlens import Encoder
from hashlens.workflows.inspect import images_to_inspect


@pytest.fixture
def model(digits_model, tmp_path):
    return shutil.copytree(digits_model, tmp_path / "model")


def test_radius_is_proposed_stored_and_leaves_the_codes_alone(model):
    before = Encoder.load(model)
    assert before.radius is None
    result = run("inspect", model, "--data", "digits#test", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["ones"]) == len(found["entropy"]) == found["bits"] == 24
    assert found["n_images"] == 359
    assert 0 < found["radius"] < 12
    assert found["radii"]["precision"][found["radius"]] > 0.8
    after = Encoder.load(model)
    assert after.radius == found["radius"]
    assert after.fingerprint == before.fingerprint


def test_the_stored_radius_is_searched_with(model, tmp_path):
    place = tmp_path / "digits.idx"
    assert run("index", "create", place, "digits#test", "--model", model).exit_code == 0
    search = ["search", place, "0", "-k", 400, "--radius", "proposed"]
    evaluate = ["evaluate", model, "--database", "digits#test", "--queries", "digits#test"]
    for command in (search, [*evaluate, "--radius", "proposed"]):
        refused = run(*command)
        assert refused.exit_code == 1
        assert "no radius is stored with this model; run `hashlens inspect" in refused.stderr

    stored = json.loads(run("inspect", model, "--data", "digits#test", "--json").stdout)["radius"]
    found = run(*search, "--json")
    assert f"radius: {stored} bits" in found.stderr
    answer = json.loads(found.stdout)
    assert answer["radius"] == stored
    assert answer["results"] == json.loads(run(*search[:-1], stored, "--json").stdout)["results"]
    distances = {hit["hamming"] for hit in answer["results"][0]["hits"]}
    assert 0 < max(distances) <= stored
    scored = run(*evaluate, "--radius", "proposed", "--json")
    assert json.loads(scored.stdout)["radius"] == stored


def test_by_default_the_validation_images_of_the_training_are_inspected(model, tmp_path):
    found = json.loads(run("inspect", model, "--json").stdout)
    encoder = Encoder.load(model)
    training = encoder.config.training
    assert found["held_out"]
    assert (found["data"], found["n_images"]) == (
        training["source"], training["images"]["validation"]
    )  # fmt: skip
    # The same images as in the training, by the figures that it kept of them.
    images = images_to_inspect(encoder).source
    scores = np.concatenate(
        [b.scores for b in encoder.encode_batches(images.load(i) for i in range(len(images)))]
    )
    right = (scores.argmax(axis=1) == images.labels).mean()
    assert right == pytest.approx(training["validation"]["accuracy"], abs=1e-6)
    assert "Images that the training on digits#train held out" in run("inspect", model).stdout


def test_images_that_were_not_held_out_are_called_so(model, tmp_path):
    other = run("inspect", model, "--data", "digits#test")
    assert "not the validation images of the training" in other.stdout
    description = json.loads((model / "model.json").read_text(encoding="utf-8"))
    description["training"]["images"]["training"] += 1
    (model / "model.json").write_text(json.dumps(description), encoding="utf-8")
    changed = run("inspect", model)
    assert changed.exit_code == 0, changed.stderr
    assert "which of them were held out cannot be found again" in changed.stdout
    for source, said in (("nowhere", "which cannot be opened here"), (None, "does not say which")):
        description["training"]["source"] = source
        (model / "model.json").write_text(json.dumps(description), encoding="utf-8")
        refused = run("inspect", model)
        assert refused.exit_code == 1
        assert said in refused.stderr


def test_page_with_pictures(model, tmp_path):
    out = tmp_path / "page"
    result = run("inspect", model, "--data", "digits#test", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "different codes for 359 images" in result.stdout
    assert re.search(r"radius \d+: stored in", result.stdout)
    page = (out / "inspection.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 5
    assert (
        json.loads((out / "inspection.json").read_text(encoding="utf-8"))["data"] == "digits#test"
    )


def test_without_labels_there_is_no_radius(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "torn.png").write_bytes(b"")
    result = run("inspect", model, "--data", folder, "--out", tmp_path / "page")
    assert result.exit_code == 0, result.stderr
    assert "No two images share a label" in result.stdout
    assert "torn.png" in result.stderr
    assert Encoder.load(model).radius is None


def test_nothing_to_look_at(model, tmp_path):
    missing = run("inspect", model, "--data", tmp_path / "nowhere")
    assert missing.exit_code == 1
    assert "nowhere" in missing.stderr
