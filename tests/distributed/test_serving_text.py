"""Words through Ray Serve's front end find what they find in one index."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("open_clip", reason="needs the extra 'clip'")

import tiny_clip
from hashlens import Encoder, HashIndex, Text
from hashlens.distributed.serving import build
from hashlens.distributed.snapshots import reshard

WORDS = ["a red picture", "a green picture", "a blue picture"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a model over it, and an index of pictures of three colours, also in two shards."""
    folder = tiny_clip.save_home(tmp_path_factory.mktemp("words").resolve())
    reshard(folder / "i", folder / "s", 2)
    return folder


@pytest.fixture(scope="module")
def client(cluster: Any, home: Path) -> Iterator[Any]:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"index": str(home / "s"), "deadline": "20"}), name="words", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as made:
        yield made
    serve.shutdown()


@pytest.mark.parametrize("mode", ["hds", "acs", "bcs", "es"])
def test_a_text_finds_what_one_index_finds(client: Any, home: Path, mode: Any) -> None:
    with HashIndex.open(home / "i", Encoder.load(home / "m")) as index:
        for text in WORDS:
            expected = index.search(Text(text), k=10, mode=mode)
            answer = client.post("/v1/search", params={"k": 10, "mode": mode}, json={"text": text})
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert found["missing"] == []
            assert [hit["name"] for hit in found["hits"]] == [Path(h.uri).name for h in expected]
            assert [hit["label"] for hit in found["hits"]] == [hit.label for hit in expected]
            assert [hit["hamming"] for hit in found["hits"]] == [hit.hamming for hit in expected]


def test_a_batch_of_texts_and_an_id(client: Any) -> None:
    assert client.get("/v1/index").json()["searches_texts"] is True
    asked = {"ids": [3], "texts": WORDS, "k": 1}
    results = client.post("/v1/search/batch", json=asked).json()["results"]
    labels = [each["hits"][0]["label"] for each in results[1:]]
    assert labels == ["red", "green", "blue"]
    assert results[0]["query"]["id"] == 3


def test_what_is_no_text_is_refused(client: Any) -> None:
    refused = client.post("/v1/search", json={"text": " "})
    assert refused.status_code == 422
    assert "text: expected words" in refused.json()["detail"]
