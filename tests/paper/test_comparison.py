"""The comparison end to end on scikit-learn's digits: splits, every method, results kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hashlens import InvalidInputError, SourceError, open_source
from hashlens.baselines import create_method, method_names
from hashlens.paper.comparison import (
    PROTOCOLS,
    Comparison,
    Job,
    PaperSplit,
    error_table,
    make_split,
    map_table,
    neural_codes,
    others_table,
    write_comparison,
)
from hashlens.paper.runs import (
    Amounts,
    Piece,
    ResultStore,
    all_printed,
    file_name,
    printed_figures,
    read_piece,
)

AMOUNTS = Amounts(training=200, database=200, queries=40)


def digits_piece(**changes: Any) -> Piece:
    piece = read_piece("mnist", quick=True)
    training = {"recipe": "small", "epochs": 1, "batch_size": 32}
    options = {"KSH": {"anchors": 60}, "BRE": {"sweeps": 1, "anchors": 10}, "MLH": {"steps": 300}}
    return replace(
        piece, size=8, bits=(16,), error_bits=(16,), training=training, options=options, **changes
    )


def digits_split(protocol: str = "paper", amounts: Amounts = AMOUNTS) -> PaperSplit:
    return make_split(open_source("digits#train"), open_source("digits#test"), protocol, amounts, 0)


class SealedLabels(np.ndarray[Any, Any]):
    """Labels that let those of training images be taken, and fail for any other."""

    allowed: Any = None

    def __getitem__(self, key: Any) -> Any:
        rows = np.asarray(key)
        if self.allowed is None or not np.isin(rows, self.allowed).all():
            raise AssertionError("labels of images that do not train were read")
        return np.asarray(self).take(rows)


def test_supervised_methods_never_see_other_labels(tmp_path: Path) -> None:
    split = digits_split("54000", Amounts(training=200, database=200, queries=50))
    labels = split.images.labels.copy().view(SealedLabels)
    labels.allowed = split.rows.train
    sealed = replace(split, images=replace(split.images, labels=labels))
    with pytest.raises(AssertionError, match="do not train"):
        sealed.images.subset(sealed.rows.queries)
    run = Comparison(digits_piece(), sealed, tmp_path, "pixels", console=Console(quiet=True))
    for job in run.jobs():
        if job.method in method_names():
            assert run.encode(job)[0].codes.shape == (450, 2), job


def test_other_labels_change_no_code(tmp_path: Path) -> None:
    split = digits_split("54000", Amounts(training=200, database=200, queries=50))
    labels = split.images.labels.copy()
    others = np.setdiff1d(np.arange(len(labels)), split.rows.train)
    labels[others] = (labels[others] + 1) % 10
    wrong = replace(split, images=replace(split.images, labels=labels))
    runs = [
        Comparison(digits_piece(), one, tmp_path / name, "pixels", console=Console(quiet=True))
        for name, one in (("right", split), ("wrong", wrong))
    ]
    for job in runs[0].jobs():
        codes = [run.encode(job)[0].codes for run in runs]
        np.testing.assert_array_equal(codes[0], codes[1], err_msg=str(job))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_keep_their_parts_apart(protocol: str) -> None:
    split = digits_split(protocol, Amounts(training=300, database=500, queries=100))
    train, database, queries = (set(part.tolist()) for part in split.rows)
    assert (len(train), len(queries)) == (300, 100)
    assert not queries & (train | database)
    assert len(database) == 500
    assert (train <= database) == (protocol != "54000")
    if protocol == "54000":
        assert not train & database
    for part in (split.rows.train, split.rows.queries):
        counts = np.bincount(split.images.labels[part], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert f"{len(database):,}" in split.describe()
    assert protocol in split.describe()


def test_the_papers_protocol_takes_everything() -> None:
    train, test = open_source("digits#train"), open_source("digits#test")
    split = make_split(train, test, "paper", Amounts(), 0)
    assert split.whole
    assert len(split.train) == len(split.rows.database) == len(train)
    queries = split.images.subset(split.rows.queries)
    assert list(queries.uris) == list(test.uris)
    np.testing.assert_array_equal(queries.labels, test.labels)
    np.testing.assert_array_equal(np.asarray(queries.load(3)), np.asarray(test.load(3)))


def test_splits_refuse_what_they_cannot_do(class_folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected one of paper, 54000, 59000"):
        digits_split("60000")
    with pytest.raises(InvalidInputError, match="at least 200 images of each class"):
        digits_split("54000", Amounts(training=2000, database=10, queries=10))
    with pytest.raises(SourceError, match="expected the same classes"):
        make_split(open_source("digits"), open_source(class_folder), "paper", AMOUNTS, 0)


def test_every_method_runs_and_nothing_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Comparison(
        digits_piece(), digits_split(), tmp_path, "pixels", console=Console(quiet=True)
    )
    assert len(run.jobs()) == 10
    assert run.expected_seconds() > 60
    kept = run.run()
    assert run.expected_seconds() == 0
    for job, result in kept.items():
        scores = result["scores"]
        assert 0.15 < scores["precision"]["1"] <= 1, job
        assert (scores["classification_error"] is not None) == (
            job.method in ("CNNH", "CNNH+", "Hashlens")
        )
        assert result["configuration"]["seed"] == 0
        assert result["versions"]["numpy"]
        assert "cores of" in result["hardware"]
    assert set(kept[Job("Hashlens", 16)]["scores"]["ways"]) == {
        "bcs", "acs", "hds", "es", "neural codes"
    }  # fmt: skip
    page = write_comparison(run, kept, "hashlens reproduce")
    text = page.read_text()
    for method in run.piece.methods:
        assert method in text
    assert text.count("<img") == 4
    assert 'src="http' not in text
    assert (tmp_path / "report.md").is_file()

    def refuse(self: Comparison, job: Job) -> Any:
        raise AssertionError(f"{job} ran again")

    monkeypatch.setattr(Comparison, "score", refuse)
    assert run.run() == kept
    with pytest.raises(AssertionError, match="ran again"):
        replace(run, seed=1).run()


def test_an_interrupted_run_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = digits_piece(methods=("LSH", "ITQ"))
    run = Comparison(piece, digits_split(), tmp_path, "pixels", console=Console(quiet=True))
    whole = Comparison.score

    def interrupted(self: Comparison, job: Job) -> dict[str, Any]:
        if job.method == "ITQ":
            raise KeyboardInterrupt
        return whole(self, job)

    monkeypatch.setattr(Comparison, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert len(list((tmp_path / "results").glob("*.json"))) == 1


def test_a_cut_result_is_run_again(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    kept = store.put("KSH-48", {"bits": 48}, {"map@1000": 0.5})
    assert store.get("KSH-48", {"bits": 48}) == kept
    assert store.get("KSH-48", {"bits": 32}) is None
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:40])
    assert store.get("KSH-48", {"bits": 48}) is None
    assert file_name("CNNH+") == "cnnh-plus"


def test_printed_figures_are_those_of_the_authors(tmp_path: Path) -> None:
    precision = printed_figures("cifar10", "precision", 48)
    assert precision["KSH", 1000] == 0.45
    assert precision["CNNH+", 1000] == 0.608
    assert printed_figures("cifar10", "map", 48)["Hashlens", 1000] == 0.8973
    assert printed_figures("cifar10", "precision", 32) == {}
    assert printed_figures("mnist", "precision", 48) == {}
    assert printed_figures("mnist", "classification_error", 48) == {("Hashlens", 0): 0.0047}
    errors = [printed_figures(name, "classification_error", None) for name in ("mnist", "cifar10")]
    assert errors[0]["network in network", 0] == 0.0047
    assert errors[1]["network in network, augmented", 0] == 0.0881
    piece = replace(read_piece("cifar10"), methods=("KSH",))
    kept = {Job("KSH", bits): {"scores": {"map@1000": bits / 100}} for bits in piece.bits}
    run = Comparison(piece, replace(digits_split(), whole=True), tmp_path, "gist")
    assert map_table(run, kept).rows == [["KSH", 0.12, 0.303, 0.32, 0.346, 0.48, 0.356]]
    other = replace(run, split=replace(run.split, protocol="59000"))
    assert map_table(other, kept).rows == [["KSH", 0.12, None, 0.32, None, 0.48, None]]
    assert map_table(replace(run, split=digits_split()), kept).rows == map_table(other, kept).rows
    classified = {Job("Hashlens", 48): {"scores": {"classification_error": 0.1}}}
    rows = error_table(run, classified).rows
    assert rows[0] == ["Hashlens", 48, 10.0, None]
    assert rows[1] == ["stochastic pooling", None, None, pytest.approx(15.13)]
    assert len(rows) == 9
    assert len(error_table(other, classified).rows) == 1


def test_figures_of_others_are_shown_under_their_protocol_alone(tmp_path: Path) -> None:
    piece = read_piece("cifar10")
    run = Comparison(piece, replace(digits_split(), whole=True), tmp_path, "gist")
    kept = {Job(name, 48): {"scores": {"map@all": 0.5}} for name in ("Hashlens", "KSH")}
    ours = ["Hashlens", 48, "", 0.5, "this run"]
    shown = {}
    for protocol in PROTOCOLS:
        split = replace(run.split, protocol=protocol)
        *shown[protocol], last = others_table(replace(run, split=split), kept).rows
        assert last == ours
    assert [row[:4] for row in shown["paper"]] == [
        ["GreedyHash", 48, "AlexNet", 0.932],
        ["GreedyHash", 48, "–", 0.944],
    ]
    assert ["HashNet", 48, "AlexNet", 0.782, "swuxyj/DeepHash-pytorch"] in shown["54000"]
    assert not any(row[0] == "GreedyHash" for row in shown["54000"])
    assert others_table(replace(run, piece=read_piece("mnist")), kept).rows == []
    assert others_table(replace(run, split=digits_split()), kept).rows == []
    for one in all_printed():
        assert one.protocol, one
        assert one.source, one


def test_pieces_compare_every_method_in_the_order_of_the_paper() -> None:
    from hashlens.training.config import TrainingConfig

    order = ("LSH", "SH", "ITQ", "BRE", "MLH", "ITQ-CCA", "KSH", "CNNH", "CNNH+", "Hashlens")
    for name in ("mnist", "cifar10"):
        for quick in (False, True):
            piece = read_piece(name, quick=quick)
            assert piece.methods == tuple(piece.seconds) == order
            for method, options in piece.options.items():
                create_method(method, 48, **options)
            TrainingConfig().with_values(piece.training)


def test_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hashlens.cli.main import app

    runner = CliRunner()
    out = str(tmp_path / "out")
    wrong = runner.invoke(app, ["reproduce", "mnist", "--methods", "ITQ,XYZ", "--out", out])
    assert wrong.exit_code == 2
    assert "XYZ" in wrong.output
    wrong = runner.invoke(app, ["reproduce", "mnist", "--bits", "128", "--out", out])
    assert wrong.exit_code == 2
    arguments = ["reproduce", "mnist", "--data", "digits", "--features", "nothing", "--out", out]
    missing = runner.invoke(app, [*arguments, "--methods", "ITQ"])
    assert missing.exit_code == 1
    assert "pixels, gist" in missing.output
    answer = runner.invoke(
        app,
        [
            "reproduce",
            "mnist",
            "--data",
            "digits",
            "--out",
            out,
            "--methods",
            "LSH,ITQ",
            "--bits",
            "48",
            "--json",
        ],
    )
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert [result["name"] for result in found["results"]] == ["LSH", "ITQ"]
    assert Path(found["report"]).is_file()
    assert "about 40 s" in answer.stderr


def test_neural_codes_keep_the_neighbours_of_unit_features() -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 32)).astype(np.float32)
    train = np.arange(0, 300, 2)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = PCA(8, svd_solver="full").fit(unit[train]).transform(unit)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = neural_codes(features, train, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
