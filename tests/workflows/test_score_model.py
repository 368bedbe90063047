"""Scoring a model on sources of many labels, of missing labels, and without a classifier."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hashlens import Encoder, SourceError, open_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.models.description import ModelConfig
from hashlens.models.encoder import EncodedPixels
from hashlens.workflows.score import evaluate, sheet_queries, write_report

DIGITS = tuple(str(digit) for digit in range(10))
PARITY = ("even", "odd", "below five")


class RandomProjection:
    """A network: random directions of the pixels; scores are the pixels of ten places."""

    def run(self, images):
        flat = images.reshape(len(images), -1)
        planes = np.random.default_rng(0).normal(size=(flat.shape[1], 16)).astype(np.float32)
        return EncodedPixels.of(flat @ planes, flat, flat[:, 20:30])


@pytest.fixture(scope="module")
def encoder():
    preprocessing = Preprocessing(size=8, channels=1, mean=(0.5,), std=(0.5,))
    return Encoder(ModelConfig(16, 64, DIGITS, "none", preprocessing), RandomProjection())


def many_labels(source: Source) -> Source:
    """Each digit as even or odd, and below five or not."""
    digit = source.labels
    matrix = np.stack([digit % 2 == 0, digit % 2 == 1, digit < 5], axis=1)
    return dataclasses.replace(source, classes=PARITY, labels=digit % 2, label_matrix=matrix)


def test_images_of_many_labels_are_relevant_where_one_is_shared(encoder):
    database, queries = (many_labels(open_source(f"digits#{part}")) for part in ("train", "test"))
    queries = queries.subset(np.arange(40))
    scored = evaluate(encoder, database, queries)
    found = scored.evaluation
    ids = found.modes["es"].nearest[:, 0]
    first = (database.label_matrix[ids] & queries.label_matrix).any(axis=1).mean()
    assert found.modes["es"].precision[1] == pytest.approx(first)
    # By chance alone about 0.7 are relevant: same parity, or both below five.
    assert found.modes["es"].precision[10] > 0.85
    assert found.classification_error is None
    sheet, _ = sheet_queries(scored)
    assert sheet[0].label in {"even, below five", "odd, below five", "even", "odd"}


def test_a_model_without_classifier_has_no_classification_error(encoder):
    bare = Encoder(dataclasses.replace(encoder.config, classes=()), RandomProjection())
    scored = evaluate(bare, open_source("digits#train"), open_source("digits#test"))
    assert scored.evaluation.classification_error is None
    assert scored.warnings == ()


def test_classification_error_is_that_of_the_highest_score(encoder):
    queries = open_source("digits#test")
    scored = evaluate(encoder, open_source("digits#train"), queries, modes=["bcs"])
    pixels = np.stack([np.asarray(queries.load(i)) for i in range(len(queries))]).reshape(-1, 64)
    best = pixels[:, 20:30].argmax(axis=1)
    assert scored.evaluation.classification_error == pytest.approx((best != queries.labels).mean())


def test_unlabelled_images_are_told_and_not_used_as_queries(encoder):
    digits = open_source("digits#test")
    labels = np.where(np.arange(len(digits)) % 3 == 0, -1, digits.labels)
    partly = dataclasses.replace(digits, labels=labels)
    scored = evaluate(encoder, open_source("digits#train"), partly, modes=["bcs"])
    assert scored.evaluation.n_queries == (labels >= 0).sum()
    assert "120 of the 359 images of digits#test have no label" in scored.warnings[0]
    backwards = evaluate(encoder, partly, open_source("digits#train"), modes=["bcs"])
    assert "each one found counts as wrong" in backwards.warnings[0]


def test_sources_that_cannot_be_read_at_all(encoder, tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "torn.png").write_bytes(b"")
    with pytest.raises(SourceError, match="none of its 2 images can be read"):
        evaluate(encoder, open_source(str(tmp_path)), open_source("digits#test"))


def test_report_says_how_the_pool_was_made(encoder, tmp_path):
    queries = open_source("digits#test").subset(np.arange(20))
    near = evaluate(encoder, open_source("digits#train"), queries, radius=3)
    page = write_report(near, tmp_path).read_text(encoding="utf-8")
    assert "Hamming radius 3" in page
    pooled = evaluate(encoder, open_source("digits#train"), queries, pool=50)
    assert "the 50 nearest codes" in write_report(pooled, tmp_path).read_text(encoding="utf-8")
    assert pooled.to_dict()["pool"] == 50
    everything = evaluate(encoder, open_source("digits#train"), queries)
    page = write_report(everything, tmp_path).read_text(encoding="utf-8")
    assert "the 200 nearest codes, from k = 50 on 4 k of them" in page
    found = everything.to_dict()
    assert found["hds"]["map@1000"] == found["es"]["map@1000"]
    small = evaluate(encoder, open_source("digits#test"), queries, pool=359)
    assert "HDS is ES here" in write_report(small, tmp_path).read_text(encoding="utf-8")


def test_a_mode_that_is_clearly_better_than_the_stored_one_is_named(encoder, tmp_path):
    queries = open_source("digits#test").subset(np.arange(100))
    scored = evaluate(encoder, open_source("digits#train"), queries)
    precision = {mode: one.precision[10] for mode, one in scored.evaluation.modes.items()}
    assert precision["es"] > precision["bcs"] + 0.01
    assert scored.stored_mode is None or scored.better_mode != scored.stored_mode
    told = dataclasses.replace(scored, stored_mode="bcs")
    best = max(precision, key=precision.get)
    assert told.to_dict()["better_mode"] == best
    assert "is clearly better here than BCS, the mode stored with the model" in str(told)
    assert "is clearly better here" in write_report(told, tmp_path).read_text(encoding="utf-8")
    for quiet in (None, best):
        assert "clearly better" not in str(dataclasses.replace(scored, stored_mode=quiet))
