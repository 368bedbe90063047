"""The conventions of scikit-learn: clone, pipelines, pickles, parameters, labels that are words."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hashlens import InvalidInputError
from hashlens.baselines import create_method, method_names

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 24))
CLASSES = np.repeat(np.arange(3), 40)
FEATURES = (CENTRES[CLASSES] + RNG.normal(0, 0.5, (120, 24))).astype(np.float32)
WORDS = np.array(["ant", "bee", "cat"])[CLASSES]

pytestmark = pytest.mark.parametrize("name", method_names())


def fitted(name: str, labels: Any = CLASSES) -> Any:
    return create_method(name, 8).fit(FEATURES, labels)


def test_a_clone_has_the_parameters_and_learns_the_same(name: str) -> None:
    method = fitted(name)
    copy = clone(method)
    assert type(copy) is type(method)
    assert copy.get_params() == method.get_params()
    with pytest.raises(InvalidInputError, match="fit"):
        copy.transform(FEATURES)
    np.testing.assert_array_equal(copy.fit_transform(FEATURES, CLASSES), method.transform(FEATURES))


def test_a_pipeline_and_a_pickle_give_the_same_codes(name: str) -> None:
    pipeline = make_pipeline(StandardScaler(), create_method(name, 8)).fit(FEATURES, CLASSES)
    codes = pipeline.transform(FEATURES)
    assert codes.shape == (120, 1)
    assert codes.dtype == np.uint8
    scaled = StandardScaler().fit_transform(FEATURES)
    np.testing.assert_array_equal(codes, create_method(name, 8).fit(scaled, CLASSES).encode(scaled))
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.transform(FEATURES), codes)


def test_words_are_labels_as_numbers_are(name: str) -> None:
    codes = fitted(name).encode(FEATURES)
    for labels in (WORDS, WORDS.tolist(), WORDS.astype(object), CLASSES.astype(np.float64)):
        np.testing.assert_array_equal(fitted(name, labels).encode(FEATURES), codes)


def test_parameters_are_set_by_name_and_unknown_ones_refused(name: str) -> None:
    method = fitted(name).set_params(bits=16, seed=3)
    assert method.get_params()["bits"] == 16
    with pytest.raises(InvalidInputError, match="fit"):
        method.encode(FEATURES)
    assert method.fit(FEATURES, CLASSES).encode(FEATURES).shape == (120, 2)
    with pytest.raises(InvalidInputError, match=r"expected parameters of bits.*, got width"):
        method.set_params(width=3)


def test_labels_that_are_missing_or_mixed_name_what_is_wrong(name: str) -> None:
    if not create_method(name, 8).supervised:
        create_method(name, 8).fit(FEATURES, [None] * 120)  # never read
        return
    holes = WORDS.astype(object)
    holes[7] = None
    with pytest.raises(InvalidInputError, match=r"got 1 unlabelled .* first in row 7"):
        fitted(name, holes)
    mixed = WORDS.astype(object)
    mixed[3] = 3
    with pytest.raises(InvalidInputError, match="119 of 120 are words"):
        fitted(name, mixed)
    with pytest.raises(InvalidInputError, match="expected 120 words or numbers"):
        fitted(name, WORDS[:50])
