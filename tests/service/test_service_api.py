"""The API against a live server: searching, looking at images, adding and removing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import KEY, Service, draw, png, running

import hamming_reference as reference
from hashlens import Encoder, HashIndex
from hashlens.service.engine import Engine
from hashlens.service.limits import Limits
from hashlens.service.schemas import Refused
from hashlens.service.uploads import UploadStore
from hashlens.types import MODES

AUTHORISED = {"Authorization": f"Bearer {KEY}"}


def search(service: Service, picture: bytes | None = None, **fields: Any) -> dict[str, Any]:
    files = {"image": ("../../etc/passwd", picture)} if picture is not None else {"_": ("", b"")}
    response = service.client.post("/v1/search", data=fields, files=files)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def unpacked(code: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(bytes.fromhex(code), np.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_finds_what_the_library_finds(
    service: Service, encoder: Encoder, picture: bytes, mode: str
) -> None:
    answer = search(service, picture, k=12, mode=mode)
    expected = service.index.search(Image.open(io.BytesIO(picture)), k=12, mode=mode)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    assert [hit["label"] for hit in answer["hits"]] == [hit.label for hit in expected]
    assert [hit["metadata"] for hit in answer["hits"]] == [hit.metadata for hit in expected]
    assert answer["mode"] == mode
    distance = {"hds": "euclidean", "es": "euclidean", "acs": "asymmetric", "bcs": "hamming"}[mode]
    found = [hit[distance] for hit in answer["hits"]]
    assert found == pytest.approx([getattr(hit, distance) for hit in expected], rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_hamming_distances_are_those_of_the_codes(
    service: Service, picture: bytes, mode: str
) -> None:
    answer = search(service, picture, k=90, mode=mode)
    assert len(answer["hits"]) == 90
    query = unpacked(answer["query"]["code"])
    codes = np.stack([unpacked(hit["code"]) for hit in answer["hits"]])
    expected = reference.distances(codes, query[None])[0]
    assert [hit["hamming"] for hit in answer["hits"]] == expected.tolist()
    for hit in answer["hits"]:
        assert (hit["euclidean"] is None) == (mode in ("bcs", "acs"))
        assert (hit["asymmetric"] is None) == (mode != "acs")


def test_an_image_of_the_index_is_not_its_own_hit(service: Service) -> None:
    answer = search(service, id=7, k=90)
    assert answer["query"]["id"] == 7
    assert answer["query"]["label"] == service.index.get(7).label
    assert len(answer["hits"]) == 89
    assert 7 not in [hit["id"] for hit in answer["hits"]]
    for mode in MODES:
        answer = search(service, id=7, k=1, mode=mode, histogram=True)
        assert answer["pool"] == sum(answer["histogram"]) == 89


def test_by_id_acs_is_bcs(service: Service) -> None:
    """Of an image of the index only bits are known: each that differs counts 1."""
    acs, bcs = (search(service, id=7, k=90, mode=mode)["hits"] for mode in ("acs", "bcs"))
    assert [hit["id"] for hit in acs] == [hit["id"] for hit in bcs]
    assert [hit["asymmetric"] for hit in acs] == [hit["hamming"] for hit in bcs]


def test_without_a_mode_the_best_is_taken(
    index_dir: Path, encoder: Encoder, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for best, within in ((None, "hds"), ("es", "hds"), ("acs", "acs")):
        monkeypatch.setattr(encoder, "mode", best)
        with running(index_dir, encoder) as service:
            described = service.client.get("/v1/index").json()
            assert described["mode"] == (best or "hds")
            assert described["modes"] == list(MODES)
            answer = search(service, picture, k=9)
            assert answer["mode"] == described["mode"]
            assert answer["hits"] == search(service, picture, k=9, mode=answer["mode"])["hits"]
            assert search(service, picture, radius=9)["mode"] == within
            batch = service.client.post("/v1/search/batch", data={"ids": "3"})
            assert batch.json()["mode"] == described["mode"]


def test_codes_alone_are_searched_by_latent_values(
    tmp_path: Path, encoder: Encoder, picture: bytes
) -> None:
    pictures = [draw("circle", seed) for seed in range(30)]
    with HashIndex.create(tmp_path / "codes.idx", encoder, features="none") as index:
        index.add(pictures)
    with running(tmp_path / "codes.idx", encoder, key=KEY) as service:
        described = service.client.get("/v1/index").json()
        assert (described["modes"], described["mode"]) == (["acs", "bcs"], "acs")
        answer = search(service, picture, k=5)
        assert answer["mode"] == "acs"
        found = [hit["asymmetric"] for hit in answer["hits"]]
        assert found == sorted(found)
        assert len(found) == 5
        refused = service.client.post("/v1/search", data={"id": "3", "mode": "hds"})
        assert (refused.status_code, "use acs or bcs" in refused.text) == (422, True)
        added = service.client.post("/v1/images", files={"image": picture}, headers=AUTHORISED)
        assert added.status_code == 201
        found = search(service, picture, k=40)["hits"]
        assert added.json()["id"] in [hit["id"] for hit in found if hit["asymmetric"] == 0]
    with running(tmp_path / "codes.idx", None) as service:
        assert service.client.get("/v1/index").json()["mode"] == "bcs"
        assert search(service, id=3)["mode"] == "bcs"


def test_the_histogram_counts_the_distances(service: Service, picture: bytes) -> None:
    answer = search(service, picture, k=90, mode="bcs", histogram=True)
    found = [hit["hamming"] for hit in answer["hits"]]
    assert answer["histogram"] == np.bincount(found, minlength=25).tolist()
    filtered = search(service, picture, mode="hds", histogram=True, where='{"label": "cross"}')
    assert sum(filtered["histogram"]) == 30


def test_the_radius_bounds_the_pool(service: Service, picture: bytes) -> None:
    counts = search(service, picture, histogram=True)["histogram"]
    radius = int(np.flatnonzero(np.cumsum(counts) >= 20)[0])
    for mode in ("hds", "acs", "bcs"):
        answer = search(service, picture, k=90, mode=mode, radius=radius)
        assert answer["pool"] == len(answer["hits"]) == sum(counts[: radius + 1])
        assert max(hit["hamming"] for hit in answer["hits"]) <= radius
    assert search(service, picture, mode="es")["pool"] == 90


def test_a_filter_keeps_what_fits(service: Service, picture: bytes) -> None:
    where = {"label": ["cross", "circle"], "shelf": "left", "price": {">=": 30}}
    answer = search(service, picture, k=90, where=json.dumps(where))
    assert answer["hits"]
    for hit in answer["hits"]:
        assert hit["label"] in ("cross", "circle")
        assert hit["metadata"]["shelf"] == "left"
        assert hit["metadata"]["price"] >= 30


def test_times_of_the_stages_are_told(service: Service, picture: bytes) -> None:
    timings = search(service, picture)["timings_ms"]
    assert set(timings) == {"decode", "encode", "coarse", "fine", "total"}
    assert all(timings[stage] > 0 for stage in timings)
    assert timings["total"] >= timings["decode"] + timings["coarse"] + timings["fine"]
    by_id = search(service, id=3, mode="bcs")["timings_ms"]
    assert by_id["decode"] == by_id["encode"] == by_id["fine"] == 0


def test_a_batch_answers_each_query_in_its_place(service: Service, picture: bytes) -> None:
    files = [("images", ("a", picture)), ("images", ("b", b"no image")), ("images", ("c", picture))]
    data = {"ids": ["5", "100000"], "k": "4"}
    response = service.client.post("/v1/search/batch", data=data, files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [bool(result["error"]) for result in results] == [False, True, False, True, False]
    assert results[0]["hits"] == search(service, id=5, k=4)["hits"]
    assert "images[1]" in results[3]["error"]
    one = search(service, picture, k=4)
    assert [hit["id"] for hit in results[4]["hits"]] == [hit["id"] for hit in one["hits"]]


def test_a_batch_counts_distances_if_asked_to(service: Service) -> None:
    data = {"ids": ["5", "100000"], "histogram": "true"}
    results = service.client.post("/v1/search/batch", data=data).json()["results"]
    assert results[0]["histogram"] == search(service, id=5, histogram=True)["histogram"]
    assert results[1]["histogram"] is None


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({}, 422, "image"),
        ({"id": "1", "k": "0"}, 422, "k"),
        ({"id": "1", "k": "1001"}, 422, "1000"),
        ({"id": "1", "mode": "fast"}, 422, "mode"),
        ({"id": "1", "radius": "-1"}, 422, "radius"),
        ({"id": "1", "mode": "es", "radius": "3"}, 422, "radius"),
        ({"id": "1", "where": "[]"}, 422, "where"),
        ({"id": "1", "where": '{"price": {"like": 3}}'}, 422, "price"),
        ({"id": "1", "where": json.dumps({"price": list(range(500))})}, 422, "where"),
        ({"id": "100000"}, 404, "100000"),
        ({"id": str(2**63)}, 422, "id"),
        ({"image": "https://example.org/a.png"}, 422, "image"),
        ({"image": "/etc/passwd"}, 422, "image"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    service: Service, fields: dict[str, str], status: int, word: str
) -> None:
    response = service.client.post("/v1/search", data=fields)
    assert response.status_code == status
    detail = response.json()["detail"]
    assert word in detail
    assert "\n" not in detail


def test_a_picture_and_an_id_together_are_refused(service: Service, picture: bytes) -> None:
    response = service.client.post("/v1/search", data={"id": "1"}, files={"image": picture})
    assert response.status_code == 422


def test_the_index_describes_itself(service: Service) -> None:
    answer = service.client.get("/v1/index").json()
    assert answer["images"] == 90
    assert (answer["bits"], answer["radius"]) == (24, 6)
    assert answer["labels"] == [{"label": n, "count": 30} for n in ("circle", "cross", "stripes")]
    fields = {field["key"]: field["values"] for field in answer["metadata"]}
    assert fields["shelf"] == ["left", "right"]
    assert answer["writable"] is False
    assert answer["name"] == "shapes.idx"


def test_a_sample_is_seeded_and_in_order(service: Service) -> None:
    first, again, other = (
        service.client.get("/v1/images", params={"limit": 20, "sample": seed}).json()["images"]
        for seed in (1, 1, 2)
    )
    ids = [image["id"] for image in first]
    assert first == again != other
    assert ids == sorted(set(ids))
    assert len(ids) == 20


def test_a_record_tells_no_path(service: Service) -> None:
    record = service.client.get("/v1/images/4").json()
    assert record == {
        "id": 4,
        "name": "004.png",
        "path": None,
        "label": "cross",
        "metadata": {"shelf": "right", "price": 4},
        "thumbnail": "/v1/images/4/thumbnail",
    }
    assert service.client.get("/v1/images/999").status_code == 404


def test_files_are_shown_where_that_is_allowed(
    service: Service, index_dir: Path, encoder: Encoder
) -> None:
    assert service.client.get("/v1/index").json()["shows_files"] is False
    assert service.client.get("/v1/images/4/file").status_code == 403
    assert {hit["path"] for hit in search(service, id=4)["hits"]} == {None}
    with running(index_dir, encoder, show_files=True) as open_service:
        path = Path(open_service.client.get("/v1/images/4").json()["path"])
        got = open_service.client.get("/v1/images/4/file")
        assert (got.content, got.headers["content-type"]) == (path.read_bytes(), "image/png")
        assert open_service.client.get("/v1/images/999/file").status_code == 404
        hits = search(open_service, id=4)["hits"]
        assert all(Path(hit["path"]).name == hit["name"] for hit in hits)


def test_a_thumbnail_shows_the_image_and_is_cached(service: Service) -> None:
    response = service.client.get("/v1/images/4/thumbnail")
    assert response.headers["content-type"] == "image/png"
    shown = Image.open(io.BytesIO(response.content))
    assert np.array_equal(np.asarray(shown), np.asarray(draw("cross", 4)))
    unchanged = {"If-None-Match": response.headers["etag"]}
    assert service.client.get("/v1/images/4/thumbnail", headers=unchanged).status_code == 304


def test_without_a_key_nothing_can_be_written(service: Service, picture: bytes) -> None:
    for headers in ({}, AUTHORISED):
        answers = [
            service.client.post("/v1/images", files={"image": picture}, headers=headers),
            service.client.delete("/v1/images/3", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert "read-only" in answers[0].json()["detail"]


def test_adding_and_removing(writable_dir: Path, encoder: Encoder, picture: bytes) -> None:
    with running(writable_dir, encoder, key=KEY) as service:
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
            refused = service.client.post("/v1/images", files={"image": picture}, headers=headers)
            assert refused.status_code == 401
        added = service.client.post(
            "/v1/images",
            files={"image": ("../../../outside.png", picture)},
            data={"label": "new", "metadata": '{"shelf": "top"}'},
            headers=AUTHORISED,
        )
        assert added.status_code == 201
        record = added.json()
        assert (record["label"], record["metadata"]) == ("new", {"shelf": "top"})
        answer = search(service, picture, k=1)
        assert answer["hits"][0]["id"] == record["id"]
        assert answer["hits"][0]["hamming"] == 0
        assert service.client.get(record["thumbnail"]).status_code == 200
        assert service.client.get("/v1/index").json()["images"] == 91
        gone = service.client.delete(f"/v1/images/{record['id']}", headers=AUTHORISED)
        assert gone.status_code == 204
        again = service.client.delete(f"/v1/images/{record['id']}", headers=AUTHORISED)
        assert again.status_code == 404
        assert search(service, picture, k=1)["hits"][0]["id"] != record["id"]
    kept = [path for path in writable_dir.rglob("*") if path.name.endswith(".png")]
    assert [path.parent.name for path in kept] == ["uploads"]
    with HashIndex.open(writable_dir) as index:
        assert len(index) == 90


@pytest.mark.parametrize(
    "metadata", ['{"n": 1e400}', '{"n": ' + 300 * "[" + 300 * "]" + "}", '{"label": NaN}']
)
def test_metadata_that_no_answer_could_hold_is_refused_without_a_path(
    writable_dir: Path, encoder: Encoder, picture: bytes, metadata: str
) -> None:
    with running(writable_dir, encoder, key=KEY) as service:
        refused = service.client.post(
            "/v1/images", files={"image": picture}, data={"metadata": metadata}, headers=AUTHORISED
        )
        assert refused.status_code == 422
        assert str(writable_dir) not in refused.text
        assert len(search(service, id=0, k=100)["hits"]) == 89
    assert not (writable_dir / "uploads").exists()


def test_an_upload_that_cannot_be_stored_is_answered_503(
    writable_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    (writable_dir / "uploads").touch()  # a file where the folder should be
    with running(writable_dir, encoder, key=KEY) as service:
        answer = service.client.post("/v1/images", files={"image": picture}, headers=AUTHORISED)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert service.client.get("/v1/index").json()["images"] == 90


def test_a_moved_index_finds_its_uploads(
    writable_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    with running(writable_dir, encoder, key=KEY) as service:
        auth = {"Authorization": f"Bearer {KEY}"}
        made = service.client.post("/v1/images", files={"image": picture}, headers=auth).json()
    moved = writable_dir.rename(writable_dir.with_name("moved"))
    with running(moved, encoder) as service:
        assert service.client.get(made["thumbnail"]).status_code == 200


def test_an_upload_that_fails_half_way_leaves_no_file(tmp_path: Path, picture: bytes) -> None:
    name = f"{hashlib.sha256(picture).hexdigest()}.png"
    (tmp_path / "uploads" / name / "in the way").mkdir(parents=True)
    with pytest.raises(Refused, match="cannot be stored"):
        UploadStore(tmp_path).keep(picture)
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [name]


def test_a_refusal_of_the_index_names_no_path(
    writable_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    async def add() -> None:
        async with Engine(index, encoder, Limits(), writable=True) as engine:
            await engine.add(picture, None, {"n": float("inf")})

    with HashIndex.open(writable_dir, encoder) as index:
        with pytest.raises(Refused, match="image: metadata") as refused:
            asyncio.run(add())
        assert len(index) == 90
    assert "uploads" not in refused.value.detail


def test_a_service_without_a_model_searches_by_id(index_dir: Path, picture: bytes) -> None:
    with running(index_dir, None) as service:
        assert len(search(service, id=3, k=5)["hits"]) == 5
        refused = service.client.post("/v1/search", files={"image": picture})
        assert refused.status_code == 422
        assert "model" in refused.json()["detail"]
        answer = service.client.get("/v1/index").json()
        assert (answer["searches_images"], answer["radius"]) == (False, None)


def test_a_jpeg_with_further_pictures_behind_it_is_added(
    writable_dir: Path, encoder: Encoder
) -> None:
    """As cameras write it: Pillow calls it MPO."""
    buffer = io.BytesIO()
    further = [draw("circle", 9)]
    draw("cross", 8).save(buffer, "MPO", save_all=True, append_images=further)
    with running(writable_dir, encoder, key=KEY) as service:
        files = {"image": buffer.getvalue()}
        assert service.client.post("/v1/images", files=files, headers=AUTHORISED).status_code == 201


def test_what_another_process_adds_is_found(writable_dir: Path, encoder: Encoder) -> None:
    with running(writable_dir, encoder) as service:
        extra = draw("circle", 555)
        with HashIndex.open(writable_dir, encoder) as other:
            (added,) = other.add([extra], labels=["late"]).ids
        assert search(service, png(extra), k=1)["hits"][0]["id"] == added


def test_an_empty_index_is_served(tmp_path: Path, encoder: Encoder, picture: bytes) -> None:
    HashIndex.create(tmp_path / "empty.idx", encoder).close()
    with running(tmp_path / "empty.idx", encoder) as service:
        answer = search(service, picture, histogram=True)
        assert (answer["hits"], answer["pool"]) == ([], 0)
        assert service.client.get("/v1/images").json() == {"images": []}


def test_metrics_count_requests_and_stages(
    index_dir: Path, encoder: Encoder, picture: bytes
) -> None:
    with running(index_dir, encoder) as service:
        search(service, picture)
        service.client.get("/v1/images/1/thumbnail")
        service.client.get("/nowhere")
        lines = service.client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    route = 'hashlens_requests_total{method="POST",route="/v1/search",status="200"}'
    assert values[route] == "1.0"
    thumbnail = 'method="GET",route="/v1/images/{id}/thumbnail",status="200"'
    assert values[f"hashlens_requests_total{{{thumbnail}}}"] == "1.0"
    assert values['hashlens_stage_seconds_count{stage="coarse"}'] == "1.0"
    assert values["hashlens_index_images"] == "90.0"
    assert values["hashlens_pool_images_sum"] == "90.0"
    whole = 'hashlens_request_seconds_count{method="POST",route="/v1/search"}'
    assert values[whole] == "1.0"
    assert float(values[whole.replace("count", "sum")]) > 0
    assert any(name.startswith("hashlens_build_info{") for name in values)
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= set(values)


def test_two_apps_share_nothing(index_dir: Path, encoder: Encoder) -> None:
    with running(index_dir, encoder) as first, running(index_dir, encoder, Limits(k=3)) as second:
        search(first, id=1, k=10)
        assert second.client.post("/v1/search", data={"id": 1, "k": 4}).status_code == 422
