"""A service over an index of vectors: search by vector or id, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from serving import Service, draw, png, running

from hashlens import Encoder, Hasher, HashIndex

X = np.random.default_rng(0).normal(size=(80, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("vectors")
    Hasher(bits=8).fit(X).save(home / "m")
    with HashIndex.create(home / "v.idx", Hasher.load(home / "m"), model=home / "m") as index:
        index.add(X, [f"l{row % 3}" for row in range(80)], [{"row": row} for row in range(80)])
    with running(home / "v.idx", Encoder.load(home / "m")) as service:
        yield service


def ask(served: Service, path: str = "/v1/search", **fields: object) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", data=fields, timeout=30)


def test_a_vector_finds_itself_first(served: Service) -> None:
    answer = ask(served, vector=json.dumps(X[5].tolist()), mode="es", k=3)
    assert answer.status_code == 200, answer.text
    assert answer.json()["hits"][0]["id"] == 5
    assert answer.json()["query"]["id"] is None
    known = httpx.get(f"{served.url}/v1/index").json()
    assert known["vector_width"] == 12
    assert known["searches_images"] is False


def test_a_batch_of_vectors_and_ids(served: Service) -> None:
    vectors = [json.dumps(X[row].tolist()) for row in (3, 4)]
    answer = ask(served, "/v1/search/batch", vectors=vectors, ids=[9], mode="es", k=2)
    assert answer.status_code == 200, answer.text
    first, *others = answer.json()["results"]
    assert first["query"]["id"] == 9
    assert [each["hits"][0]["id"] for each in others] == [3, 4]


@pytest.mark.parametrize(
    ("vector", "status", "message"),
    [
        ("[1, 2]", 422, "expected a JSON list of 12 numbers"),
        ("nonsense", 422, "expected a JSON list of 12 numbers"),
        (json.dumps([[1.0] * 12]), 422, "expected a JSON list of 12 numbers"),
        (json.dumps(["1"] * 12), 422, "expected a JSON list of 12 numbers"),
        (json.dumps([None] * 12), 422, "expected a JSON list of 12 numbers"),
        (json.dumps([0.0] * 12), 422, "a vector of zeros"),
        ("[" + "1e300," * 11 + "1]", 422, "NaN or infinity"),
        ("[" + "NaN," * 11 + "1]", 422, "expected a JSON list of 12 numbers"),
        ("[" * 400, 422, "expected a JSON list of 12 numbers"),
        ("[" + "1," * 5000 + "1]", 413, "characters are accepted"),
    ],
)
def test_what_is_no_vector_is_refused(
    served: Service, vector: str, status: int, message: str
) -> None:
    answer = ask(served, vector=vector)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_a_picture_is_refused_by_a_model_over_vectors(served: Service) -> None:
    files = {"image": ("a.png", png(draw("cross", 1)), "image/png")}
    answer = httpx.post(f"{served.url}/v1/search", files=files)
    assert answer.status_code == 422
    assert "this model takes vectors; search by 'vector' or 'id'" in answer.json()["detail"]
    both = ask(served, vector="[1]", id=3)
    assert both.status_code == 422
    assert "expected one of" in both.json()["detail"]


def test_a_vector_is_refused_by_a_model_over_images(service: Service) -> None:
    answer = ask(service, vector="[1, 2]")
    assert answer.status_code == 422
    assert "no model that takes vectors" in answer.json()["detail"]
