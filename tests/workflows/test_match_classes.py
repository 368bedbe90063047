"""Class names of database, queries and model under one numbering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hashlens import SourceError
from hashlens.data.source import Source
from hashlens.data.vectors import vector_source
from hashlens.workflows.score import match_classes, match_model


def named(spec: str, classes: tuple[str, ...], labels: np.ndarray) -> Source:
    source = vector_source(np.ones((len(labels), 2), np.float32), None, spec=spec)
    if labels.ndim == 2:
        return replace(source, classes=classes, label_matrix=labels)
    return replace(source, classes=classes, labels=labels)


def test_classes_are_matched_by_name_not_by_number():
    database = named("db", ("cat", "dog", "owl"), np.array([0, 1, 2, -1]))
    queries = named("q", ("dog", "cat"), np.array([0, 1, -1]))
    found = match_classes(database, queries)
    assert found.database.tolist() == [0, 1, 2, -1]
    assert found.queries.tolist() == [1, 0, -1]
    assert found.warnings == ()


def test_classes_of_queries_alone_come_after_with_a_warning():
    database = named("db", ("cat",), np.array([0]))
    queries = named("q", ("ant", "cat"), np.array([0, 1]))
    found = match_classes(database, queries)
    assert found.classes == ("cat", "ant")
    assert found.queries.tolist() == [1, 0]
    assert "1 of the 2 classes of q are not in db (ant)" in found.warnings[0]


def test_names_without_an_image_do_not_count():
    database = named("db", ("cat", "dog"), np.array([0]))
    queries = named("q", ("dog", "cat"), np.array([0]))
    with pytest.raises(SourceError, match=r"no class in common \(dog; cat\)"):
        match_classes(database, queries)


def test_unlabelled_sources_have_no_class_in_common():
    empty = named("q", (), np.array([-1, -1]))
    with pytest.raises(SourceError, match="no labels"):
        match_classes(named("db", ("cat",), np.array([0])), empty)


def test_one_and_many_labels_become_many():
    database = named("db", ("cat", "dog"), np.array([[1, 1], [0, 1]], bool))
    queries = named("q", ("dog", "cat"), np.array([0, 1, -1]))
    found = match_classes(database, queries)
    assert found.queries.tolist() == [[False, True], [True, False], [False, False]]
    assert found.database.tolist() == [[True, True], [False, True]]


def test_model_classes_by_name_and_unknown_ones_are_wrong():
    queries = named("q", ("ant", "cat", "dog"), np.array([0, 1, 2, -1]))
    labels, warnings = match_model(queries, ("dog", "cat"))
    assert labels.tolist() == [2, 1, 0, -1]
    assert "1 of the 3 classes of q are unknown to the model (ant)" in warnings[0]
    labels, warnings = match_model(queries, ("owl",))
    assert labels is None
    assert "knows none" in warnings[0]
    assert match_model(queries, ()) == (None, ())
