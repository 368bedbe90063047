"""``hashlens evaluate`` on real handwriting, and on sources that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from hashlens import Encoder, evaluate
from hashlens.data.opening import open_source
from hashlens.errors import InvalidInputError


def write_folder(root, names, count=4, seed=0):
    """Class folders of random grey squares."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_table_on_stdout_and_files_in_out(digits_model, tmp_path):
    out = tmp_path / "scores"
    result = run(
        "evaluate",
        digits_model,
        "--database",
        "digits#train",
        "--queries",
        "digits#test",
        "--out",
        out,
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("24-bit codes; 1,438 images of digits#train searched with 359")
    assert [line.split()[0] for line in lines[3:7]] == ["BCS", "ACS", "HDS", "ES"]
    assert lines[7] == f"report: {out / 'report.html'}"
    names = {"results.json", "report.html", "report.md", "sheet.png"}
    assert {path.name for path in out.iterdir()} == names | {
        "precision_at_k.png",
        "precision_at_k.svg",
        "precision_recall.png",
        "precision_recall.svg",
    }
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["bcs"]["precision@10"] > 0.9
    assert found["classification_error"] < 0.1
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_json_is_one_object_and_nothing_else(digits_model):
    result = run(
        "evaluate", digits_model, "--database", "digits#train", "--queries", "digits#test",
        "--json", "--pool", 200, "--map-at", 50, "--map-at", 5000,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["pool"] == 200
    for mode in ("bcs", "acs", "hds", "es"):
        assert {"map@1000", "map@1000_ties", "precision@1", "precision@1000"} <= set(found[mode])
        assert found[mode]["map@5000"] == found[mode]["map@all"]
        assert {"map@50", "precision@20", "precision_at_recall"} <= set(found[mode])
    assert found["queries_left_out_of_their_own_results"] == 0


def untimed(found):
    return {
        key: {name: score for name, score in value.items() if name != "ms_per_query"}
        if isinstance(value, dict)
        else value
        for key, value in found.items()
    }


def test_python_gives_what_the_command_prints(digits_model, tmp_path):
    words = ["evaluate", digits_model, "--database", "digits", "--queries", "digits#test"]
    command = untimed(json.loads(run(*words, "--json").stdout))
    scored = evaluate(str(digits_model), "digits", "digits#test")
    assert untimed(scored.to_dict()) == command
    assert str(scored).splitlines()[0] == run(*words).stdout.splitlines()[0]
    onnx = tmp_path / "model.onnx"
    assert run("export", digits_model, "--onnx", onnx).exit_code == 0
    for model in (Encoder.load(digits_model), onnx):
        found = evaluate(model, open_source("digits"), open_source("digits#test"))
        for mode in ("bcs", "acs", "hds", "es"):
            wanted = command[mode]["map@1000"]
            assert abs(found.to_dict()[mode]["map@1000"] - wanted) < 1e-3
    with pytest.raises(InvalidInputError, match="radius or pool, not both"):
        evaluate(digits_model, "digits", "digits#test", radius=2, pool=10)
    with pytest.raises(InvalidInputError, match="mode: expected one of"):
        evaluate(digits_model, "digits", "digits#test", modes=["lsh"])


def test_queries_of_the_database_are_left_out_of_their_own_results(digits_model):
    result = run(
        "evaluate", digits_model, "--database", "digits", "--queries", "digits#test", "--json"
    )
    found = json.loads(result.stdout)
    assert found["queries_left_out_of_their_own_results"] == 359
    assert found["es"]["precision@1"] < 1


def test_classes_that_have_nothing_in_common_stop_it(digits_model, tmp_path):
    folder = write_folder(tmp_path / "pets", ["cat", "dog"])
    result = run("evaluate", digits_model, "--database", "digits", "--queries", folder)
    assert result.exit_code == 1
    assert "have no class in common" in result.stderr
    assert result.stdout == ""


def test_classes_missing_from_database_or_model_are_told(digits_model, tmp_path):
    database = write_folder(tmp_path / "db", ["1", "cat"])
    queries = write_folder(tmp_path / "q", ["1", "cat", "dog"], seed=1)
    result = run("evaluate", digits_model, "--database", database, "--queries", queries, "--json")
    assert result.exit_code == 0, result.stderr
    told = " ".join(json.loads(result.stdout)["warnings"])
    assert f"1 of the 3 classes of {queries} are not in {database} (dog)" in told
    assert "unknown to the model (cat, dog)" in told
    assert json.loads(result.stdout)["classification_error"] >= 2 / 3


def test_unreadable_images_are_skipped_counted_and_named(digits_model, tmp_path):
    folder = write_folder(tmp_path / "db", ["1", "2"])
    (folder / "1" / "cut.png").write_bytes(b"\x89PNG\r\n")
    command = ["evaluate", digits_model, "--database", folder, "--queries", "digits#test"]
    result = run(*command, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n_database"] == 8
    assert [Path(image["image"]).name for image in found["skipped"]] == ["cut.png"]
    assert "cut.png" in result.stderr
    strict = run(*command, "--strict")
    assert strict.exit_code == 1
    assert "cut.png" in strict.stderr


def test_wrong_usage_and_missing_files(digits_model, tmp_path):
    both = run(
        "evaluate", digits_model, "--database", "digits", "--queries", "digits",
        "--pool", 10, "--radius", 2,
    )  # fmt: skip
    assert both.exit_code == 2
    assert run("evaluate", digits_model, "--database", "digits").exit_code == 2
    (tmp_path / "file").touch()
    words = ["evaluate", digits_model, "--database", "digits", "--queries", "digits"]
    taken = run(*words, "--out", tmp_path / "file")
    assert taken.exit_code == 1
    assert (
        taken.stderr == f"error: {tmp_path}/file: file exists; expected a folder that can be made\n"
    )
    missing = run("evaluate", tmp_path / "no", "--database", "digits", "--queries", "digits")
    assert missing.exit_code == 1
    assert "make one with hashlens train" in missing.stderr
