"""The OpenAPI description against a live server: no 5xx, and every answer as it says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serving import KEY, running

from hashlens import Encoder

schemathesis = pytest.importorskip("schemathesis", reason="needs the extra 'dev'")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

OPERATIONS = [
    ("post", "/v1/search"),
    ("post", "/v1/search/batch"),
    ("get", "/v1/images"),
    ("post", "/v1/images"),
    ("get", "/v1/images/{id}"),
    ("delete", "/v1/images/{id}"),
    ("get", "/v1/images/{id}/file"),
    ("get", "/v1/images/{id}/thumbnail"),
    ("get", "/v1/index"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
]


@pytest.fixture(scope="module")
def description(
    index_dir: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    path = shutil.copytree(index_dir, tmp_path_factory.mktemp("contract").resolve() / "copy.idx")
    with running(Path(path), encoder, key=KEY) as service:
        yield schemathesis.openapi.from_url(f"{service.url}/v1/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(description: Any, method: str, path: str) -> None:
    @given(case=description[path][method].as_strategy())
    @settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def answers_as_described(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {KEY}"})

    answers_as_described()


def test_every_endpoint_is_described(description: Any) -> None:
    described = [operation.ok() for operation in description.get_all_operations()]
    assert {(each.method, each.path) for each in described} == set(OPERATIONS)
