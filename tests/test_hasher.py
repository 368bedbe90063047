"""Hasher: scikit-learn's conventions, the same codes everywhere, errors that name the row."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from hashlens import (
    Encoder,
    Hasher,
    HashIndex,
    InvalidInputError,
    ModelError,
    SourceError,
    baselines,
    hamming_topk,
    unpack_bits,
)
from hashlens.baselines import create_method, method_names
from hashlens.baselines.itq import ITQ
from hashlens.models.export import export_onnx

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 24))
CLASSES = np.repeat(np.arange(4), 60)
X = (CENTRES[CLASSES] + RNG.normal(0, 0.7, (240, 24))).astype(np.float32)
MODELS = Path(__file__).parent / "data" / "models"
WORDS = np.array(["ant", "bee", "cat", "dog"])[CLASSES]


@pytest.fixture(scope="module")
def fitted() -> Hasher:
    return Hasher(bits=16).fit(X)


@pytest.fixture(scope="module")
def trained() -> Hasher:
    return Hasher(bits=16).fit(X, WORDS)


NOT_APPLICABLE = {
    "check_complex_data": "refused, in other words than scikit-learn's",
    "check_dtype_object": "refused, in other words than scikit-learn's",
    "check_estimators_dtypes": "whole numbers are refused: packed codes would pass for vectors",
    "check_transformer_preserve_dtypes": "codes are bytes whatever the type of the vectors",
    "check_fit2d_1sample": "one vector is too few to learn from, said in our own words",
    "check_fit2d_1feature": "ten vectors of two classes leave too few for validation",
    "check_estimators_nan_inf": "ten vectors of two classes again; rows are named, tested here",
    "check_array_api_input": "arrays of other libraries are turned into NumPy's",
}


@pytest.mark.slow
def test_scikit_learn_finds_nothing_wrong_but_what_cannot_apply() -> None:
    results = check_estimator(Hasher(bits=8), on_fail=None, on_skip=None)
    failed = {each["check_name"] for each in results if each["status"] == "failed"}
    assert failed <= set(NOT_APPLICABLE)
    assert len(results) > 40


def test_unsupervised_codes_are_those_of_itq_on_unit_vectors(fitted: Hasher) -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = unpack_bits(ITQ(16).fit(unit).encode(unit), 16)
    assert np.mean(unpack_bits(fitted.transform(X), 16) == expected) > 0.999


def test_labels_gather_a_class_in_few_bits(trained: Hasher) -> None:
    bits = unpack_bits(trained.transform(X), 16).astype(int)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    same = CLASSES[:, None] == CLASSES[None]
    assert apart[same].mean() < 0.3 * apart[~same].mean()


def test_a_clone_a_pickle_a_pipeline_and_a_folder_give_the_same_codes(
    fitted: Hasher, tmp_path: Path
) -> None:
    codes = fitted.transform(X)
    copy = clone(fitted)
    with pytest.raises(InvalidInputError, match="expected fit"):
        copy.transform(X)
    np.testing.assert_array_equal(copy.fit_transform(X), codes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(X), codes)
    fitted.save(tmp_path / "hasher")
    again = Hasher.load(tmp_path / "hasher")
    np.testing.assert_array_equal(again.transform(X), codes)
    np.testing.assert_array_equal(Encoder.load(tmp_path / "hasher").encode(X)[0], codes)
    assert again.fingerprint == fitted.fingerprint
    pipeline = make_pipeline(PCA(20), Hasher(bits=16)).fit(X)
    assert pipeline.transform(X).shape == (240, 2)


@pytest.mark.parametrize("method", method_names())
def test_a_method_of_the_baselines_becomes_a_model(method: str, tmp_path: Path) -> None:
    hasher = Hasher(bits=16, method=method, metric="euclidean", seed=3).fit(X, CLASSES)
    codes = create_method(method, 16, seed=3).fit(X, CLASSES).encode(X)
    assert np.bitwise_count(hasher.transform(X) ^ codes).sum() <= 2  # of 3,840, by rounding
    hasher.save(tmp_path / "m")
    again = Hasher.load(tmp_path / "m")
    np.testing.assert_array_equal(again.transform(X), hasher.transform(X))
    assert again.feature_dim == X.shape[1]
    export_onnx(tmp_path / "m", tmp_path / "m.onnx")
    exported = Encoder.load(tmp_path / "m.onnx").encode(X)[0]
    assert np.bitwise_count(exported ^ codes).sum() <= 2


SQUARES = """
import numpy as np
from hashlens.baselines import HashMethod

class Squares(HashMethod):
    def _learn(self, features, classes):
        self.middle = np.median(np.square(features[:, : self.bits]), axis=0)

    def _project(self, features):
        return np.square(features[:, : self.bits]) - self.middle
"""


def test_a_method_that_no_model_can_hold_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squares.py").write_text(SQUARES)
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    assert create_method("SQUARES", 8).fit(X).encode(X).shape == (240, 1)
    with pytest.raises(InvalidInputError, match=r"SQUARES: a model cannot hold this method"):
        Hasher(bits=8, method="SQUARES").fit(X)


def test_methods_that_are_not_known_or_need_labels_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"method: expected one of .*ITQ.*latent"):
        Hasher(bits=8, method="best").fit(X)
    with pytest.raises(InvalidInputError, match=r"needs labels; give them as fit\(X, y\)"):
        Hasher(bits=8, method="csq").fit(X)


@pytest.mark.parametrize("method", ["bihalf", "crovca-unsupervised"])
def test_an_objective_that_needs_no_labels_learns_from_vectors_alone(
    method: str, tmp_path: Path
) -> None:
    hasher = Hasher(bits=16, method=method).fit(X)
    codes = hasher.transform(X)
    bits = unpack_bits(codes, 16)
    assert ((bits.mean(axis=0) > 0.3) & (bits.mean(axis=0) < 0.7)).all()
    _, found = hamming_topk(codes, codes, k=10)
    assert (CLASSES[found] == CLASSES[:, None]).mean() > 0.6  # of four classes it was not told
    hasher.save(tmp_path / "m")
    loaded = Encoder.load(tmp_path / "m")
    assert (loaded.classes, loaded.mode) == ((), None)
    training = loaded.config.training
    if method == "bihalf":  # its target moves, so that losses of two epochs do not compare
        assert training["epoch chosen by"] == "its number, the last"
        assert training["best epoch"] == training["configuration"]["epochs"]
    else:
        assert training["epoch chosen by"] == "lowest loss of the validation images"
    assert training["images"] == {"training": 216, "validation": 24}
    assert training["validation"]["map"] is None
    np.testing.assert_array_equal(loaded.encode(X)[0], codes)


def test_labels_that_not_all_vectors_have_are_not_read() -> None:
    some = [word if i % 2 else None for i, word in enumerate(WORDS)]
    without, one = Hasher(bits=8, method="bihalf", epochs=2).fit(X), ["one"] * 240
    for labels in (some, one):
        again = Hasher(bits=8, method="bihalf", epochs=2).fit(X, labels)
        np.testing.assert_array_equal(again.transform(X), without.transform(X))
    hasher = Hasher(bits=8, method="bihalf", epochs=2).fit(X, WORDS)
    assert hasher.mode is not None  # where all have one, they choose epoch and mode


def test_the_metric_decides_whether_length_counts(fitted: Hasher) -> None:
    np.testing.assert_array_equal(fitted.transform(100 * X), fitted.transform(X))
    euclidean = Hasher(bits=16, metric="euclidean").fit(X)
    assert (euclidean.transform(100 * X) != euclidean.transform(X)).any()


@given(scale=st.floats(1e-3, 1e3), row=st.integers(0, 239))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_codes_of_cosine_depend_on_direction_alone(fitted: Hasher, scale: float, row: int) -> None:
    one, other = X[row : row + 1], np.float32(scale) * X[row : row + 1]
    latent = [next(iter(fitted.encode_batches(each))).latent for each in (one, other)]
    np.testing.assert_allclose(latent[0], latent[1], atol=1e-4)


def as_torch() -> Any:
    import torch

    return torch.from_numpy(X)


def as_frame() -> Any:
    import pandas

    return pandas.DataFrame(X)


def as_column() -> Any:
    import pandas

    return pandas.Series(list(X))


def as_arrow() -> Any:
    import pyarrow

    return pyarrow.array(list(X))


def as_fixed_arrow() -> Any:
    import pyarrow

    return pyarrow.chunked_array([pyarrow.FixedSizeListArray.from_arrays(X.ravel(), 24)])


def as_table() -> Any:
    import pyarrow

    return pyarrow.table({str(i): X[:, i] for i in range(24)})


def as_polars() -> Any:
    polars = pytest.importorskip("polars")
    return polars.DataFrame(X)


@pytest.mark.parametrize(
    "make", [as_torch, as_frame, as_column, as_arrow, as_fixed_arrow, as_table, as_polars, X.tolist]
)
def test_vectors_of_other_libraries_have_the_same_codes(make: Any, fitted: Hasher) -> None:
    np.testing.assert_array_equal(fitted.transform(make()), fitted.transform(X))


def test_labels_may_be_numbers_words_or_several_for_a_row() -> None:
    codes = Hasher(bits=8, epochs=1).fit(X, CLASSES).transform(X)
    np.testing.assert_array_equal(Hasher(bits=8, epochs=1).fit(X, WORDS).transform(X), codes)
    several = [[word, "animal"] for word in WORDS]
    assert Hasher(bits=8, epochs=1).fit(X, several).transform(X).shape == (240, 1)
    some = [word if i % 2 else None for i, word in enumerate(WORDS)]
    assert Hasher(bits=8, epochs=1).fit(X, some).transform(X).shape == (240, 1)
    with pytest.raises(InvalidInputError, match="expected 240, one for each vector, got 10"):
        Hasher(bits=8).fit(X, WORDS[:10])
    with pytest.raises(SourceError, match="at least 2 classes"):
        Hasher(bits=8).fit(X, ["one"] * 240)


def damaged(row: int, value: float) -> Any:
    array = X.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (damaged(7, np.nan), "row 7: NaN or infinity"),
        (damaged(9, np.inf), "row 9: NaN or infinity"),
        (damaged(3, 0), "row 3: a vector of zeros"),
        (X.astype(np.float64) * 1e300, "row 0: NaN or infinity"),
        (X.astype(np.int64), "expected floating numbers, got int64"),
        (X[0], r"expected shape \(n, d\), got \(24,\)"),
        ([*X[:5].tolist(), [1.0, 2.0]], "expected 24 values in each row, got 2 in row 5"),
    ],
)
def test_vectors_that_cannot_be_used_are_named(vectors: Any, message: str, fitted: Hasher) -> None:
    for call in (fitted.transform, Hasher(bits=16).fit):
        with pytest.raises(InvalidInputError, match=message):
            call(vectors)


def test_another_width_than_in_fit_is_refused(fitted: Hasher) -> None:
    with pytest.raises(InvalidInputError, match="X has 5 features, but Hasher is expecting 24"):
        fitted.transform(X[:, :5])


def test_a_file_of_vectors_is_read_in_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    codes = Hasher(bits=16, epochs=2).fit(mapped, WORDS).transform(mapped)
    np.testing.assert_array_equal(codes, Hasher(bits=16, epochs=2).fit(X, WORDS).transform(X))


def test_an_index_takes_vectors_and_finds_them(trained: Hasher, tmp_path: Path) -> None:
    names = [f"https://shop.example/{row}.jpg" for row in range(240)]
    with HashIndex.create(tmp_path / "v.idx", trained) as index:
        report = index.add(X, WORDS.tolist(), [{"row": row} for row in range(240)], uris=names)
        assert len(report.ids) == 240
        hits = index.search(X[17], k=5, mode="hds")
        assert hits[0].id == 17
        assert hits[0].uri == names[17]
        assert hits[0].metadata == {"row": 17}
        assert {hit.label for hit in hits} == {"ant"}
        assert [found[0].id for found in index.search(X[:3], k=1, mode="hds")] == [0, 1, 2]
        with pytest.raises(InvalidInputError, match="takes vectors of 24 floating numbers"):
            index.search("photo.jpg")
        with pytest.raises(InvalidInputError, match="takes vectors of 24 floating numbers"):
            index.search(X[0, :3])
    with HashIndex.open(tmp_path / "v.idx", trained) as index:
        skipped = index.add(damaged(2, np.nan)[:4]).skipped
        assert [(one.position, one.name, one.reason) for one in skipped] == [
            (2, "row 2", "NaN or infinity")
        ]
        assert len(index) == 243


def test_a_model_over_images_and_one_over_vectors_are_not_mixed_up(
    fitted: Hasher, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "v")
    with pytest.raises(ModelError, match="takes vectors of 24 values, not images"):
        _ = Encoder.load(tmp_path / "v").preprocessing
    with pytest.raises(ModelError, match="takes images; open it with"):
        Hasher.load(MODELS / "format-3")


def test_loading_and_encoding_need_no_torch(fitted: Hasher, tmp_path: Path) -> None:
    fitted.save(tmp_path / "v")
    np.save(tmp_path / "x.npy", X)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\nfrom hashlens import Hasher\n"
        "print(Hasher.load('v').transform(np.load('x.npy')).tobytes().hex())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fitted.transform(X).tobytes().hex()
