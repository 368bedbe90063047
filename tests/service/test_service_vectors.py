"""A service over an index of vectors: search by vector or id, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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
        ("[" + "NaN," * 11 + "1]", 422, "NaN or infinity"),
        ("[" * 400, 422, "expected a JSON list of 12 numbers"),
        ("[" + "1," * 5000 + "1]", 413, "480 bytes of JSON are accepted"),
    ],
)
def test_what_is_no_vector_is_refused(
    served: Service, vector: str, status: int, message: str
) -> None:
    answer = ask(served, vector=vector)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


RAW = {"Content-Type": "application/octet-stream"}


def post(served: Service, path: str, **request: Any) -> Any:
    return httpx.post(f"{served.url}/v1/search{path}", timeout=30, **request)


def test_every_body_finds_the_same(served: Service) -> None:
    where = {"row": {"<": 40}}
    settings = {"k": 4, "mode": "es", "histogram": True}
    form = {"vector": json.dumps(X[5].tolist()), "where": json.dumps(where), **settings}
    body = {"vector": X[5].tolist(), "where": where, **settings}
    address = {"where": json.dumps(where), **settings}
    answers = [
        post(served, "", data=form),
        post(served, "", files={"vector": (None, form["vector"])}, params=address),
        post(served, "", json=body),
        post(served, "", content=X[5].astype("<f4").tobytes(), headers=RAW, params=address),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    found = [answer.json() for answer in answers]
    assert found[0]["hits"][0]["id"] == 5
    assert sum(found[0]["histogram"]) == 40
    for other in found[1:]:
        assert {**other, "timings_ms": 0} == {**found[0], "timings_ms": 0}
    assert post(served, "", json={"id": 5, "k": 1}).json()["query"]["id"] == 5


def test_every_body_of_a_batch_finds_the_same(served: Service) -> None:
    rows = [3, 70, 4]
    body = {"vectors": X[rows].tolist(), "mode": "es", "k": 1, "ids": [9]}
    raw = post(
        served,
        "/batch",
        content=X[rows].astype("<f4").tobytes(),
        headers=RAW,
        params={"mode": "es", "k": 1, "ids": [9]},
    )
    answers = [post(served, "/batch", json=body), raw]
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = (answer.json()["results"] for answer in answers)
    assert first == second
    assert [each["hits"][0]["id"] for each in first[1:]] == rows


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("", {"vector": [1.0] * 11}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": [True] * 12}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": [[1.0]] * 12}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": [10**400] * 12}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": {"0": 1}}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": None}, 422, "vector: expected a JSON list of 12 numbers"),
        ("", {"vector": [1e39] * 12}, 422, "vector: NaN or infinity"),
        ("", {"vector": [0] * 12}, 422, "vector: a vector of zeros"),
        ("", {"vector": [1] * 12, "id": 4}, 422, "expected one of"),
        ("", {"vector": [1] * 12, "top": 4}, 422, "top: extra inputs are not permitted"),
        ("", {"vector": [1] * 12, "k": 5000}, 422, "k: input should be less than or equal to 1000"),
        ("", {"vector": [1] * 12, "where": ["x"]}, 422, "where: expected a JSON object, got list"),
        ("", {}, 422, "expected one of"),
        ("", [1.0] * 12, 422, "body: expected a JSON object, got list"),
        ("", {"vector": [1] * 20_000}, 413, "bytes of JSON are accepted"),
        ("/batch", {"vectors": [[1] * 12, [1] * 3]}, 422, "vectors[1]: expected a JSON list of 12"),
        ("/batch", {"vectors": 5}, 422, "vectors: input should be a valid list"),
        ("/batch", {"vectors": []}, 422, "expected image files in 'images', 'ids', 'vectors' or"),
        ("/batch", {"vectors": [[1] * 12] * 33}, 413, "33 queries; at most 32"),
    ],
)
def test_a_json_body_that_does_not_fit_is_refused(
    served: Service, path: str, body: Any, status: int, message: str
) -> None:
    answer = post(served, path, json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b'{"k": NaN}', b'{"k": 1e999}'])
def test_a_body_that_is_no_json_is_refused(served: Service, text: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = post(served, "/batch", content=text, headers=headers)
    assert (answer.status_code in (413, 422), "\n" in answer.json()["detail"]) == (True, False)
    assert answer.json()["detail"].startswith("body: ")


@pytest.mark.parametrize(
    ("path", "numbers", "status", "message"),
    [
        ("", np.ones(11), 422, "vector: expected 12 little-endian float32 (48 bytes), got 44"),
        ("", np.ones(0), 422, "got 0 bytes"),
        ("", np.ones(24), 413, "96 bytes; at most 48 are accepted"),
        ("", np.full(12, np.nan), 422, "vector: NaN or infinity"),
        ("", np.full(12, np.inf), 422, "vector: NaN or infinity"),
        ("", np.zeros(12), 422, "vector: a vector of zeros"),
        ("/batch", np.ones(30), 422, "vectors[2]: expected 12 little-endian float32"),
        ("/batch", np.ones(12 * 33), 413, "1,584 bytes; at most 1,536 are accepted"),
        ("/batch", np.ones(0), 422, "'vectors' or 'texts'"),
    ],
)
def test_raw_numbers_that_do_not_fit_are_refused(
    served: Service, path: str, numbers: Any, status: int, message: str
) -> None:
    answer = post(served, path, content=numbers.astype("<f4").tobytes(), headers=RAW)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_what_a_search_does_not_take_is_told(served: Service, service: Service) -> None:
    refused = post(served, "", content=b"<a/>", headers={"Content-Type": "text/xml"})
    assert refused.status_code == 415
    assert "application/json" in refused.json()["detail"]
    raw = X[5].astype("<f4").tobytes()
    for params, message in (
        ({"kk": 3}, "kk: not expected in the address"),
        ({"vector": "[1]"}, "vector: not expected in the address"),
        ({"k": 0}, "k: input should be greater than or equal to 1"),
        ({"where": "{"}, "where: expected a JSON object"),
    ):
        refused = post(served, "", content=raw, headers=RAW, params=params)
        assert refused.status_code == 422
        assert message in refused.json()["detail"]
    twice = post(served, "", json={"id": 5, "k": 3}, params={"k": 3})
    assert "k: given in the address and in the body" in twice.json()["detail"]
    for body in ({"json": {"vector": [1]}}, {"content": raw, "headers": RAW}):
        refused = post(service, "", **body)
        assert refused.status_code == 422
        assert "this service has no model that takes vectors" in refused.json()["detail"]


def test_every_body_is_described(served: Service) -> None:
    paths = httpx.get(f"{served.url}/v1/openapi.json").json()["paths"]
    for path, name in (("/v1/search", "vector"), ("/v1/search/batch", "vectors")):
        asked = paths[path]["post"]
        content = {kind: body["schema"] for kind, body in asked["requestBody"]["content"].items()}
        form, short, body, raw = (
            content[kind]
            for kind in (
                "multipart/form-data",
                "application/x-www-form-urlencoded",
                "application/json",
                "application/octet-stream",
            )
        )
        assert form["properties"].keys() - short["properties"].keys() <= {"image", "images"}
        assert short["properties"].keys() == body["properties"].keys()
        one = body["properties"][name] if name == "vector" else body["properties"][name]["items"]
        assert (one["minItems"], one["maxItems"]) == (12, 12)
        assert raw["format"] == "binary"
        in_body = {name, name.replace("vector", "text")}
        assert {each["name"] for each in asked["parameters"]} == body["properties"].keys() - in_body
        assert "415" in asked["responses"]


def test_a_picture_is_refused_by_a_model_over_vectors(served: Service) -> None:
    files = {"image": ("a.png", png(draw("cross", 1)), "image/png")}
    answer = httpx.post(f"{served.url}/v1/search", files=files)
    assert answer.status_code == 422
    assert "this model takes vectors; search by 'vector' or 'id'" in answer.json()["detail"]
    both = ask(served, vector=json.dumps([1.0] * 12), id=3)
    assert both.status_code == 422
    assert "expected one of" in both.json()["detail"]


def test_a_vector_is_refused_by_a_model_over_images(service: Service) -> None:
    answer = ask(service, vector="[1, 2]")
    assert answer.status_code == 422
    assert "no model that takes vectors" in answer.json()["detail"]
