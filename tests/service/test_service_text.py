"""Words over HTTP and on the page, by a model over a CLIP; and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("open_clip", reason="needs the extra 'clip'")

from serving import Service, running

import tiny_clip
from hashlens import Encoder, HashIndex, Text, train
from hashlens.service.limits import Limits

expect = pytest.importorskip("playwright.sync_api", reason="needs the extra 'dev'").expect

RED = "a red picture"
WORDS = [RED, "a green picture", "a blue picture"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a model over it that learned no labels, and an index of pictures of three colours."""
    return tiny_clip.save_home(tmp_path_factory.mktemp("words").resolve())


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Service]:
    with running(home / "i", Encoder.load(home / "m")) as service:
        yield service


def post(service: Service, path: str = "", **request: Any) -> httpx.Response:
    return service.client.post(f"/v1/search{path}", **request)


def distances(answer: dict[str, Any]) -> list[float]:
    return [hit["euclidean"] for hit in answer["hits"]]


@pytest.mark.parametrize("mode", ["hds", "acs", "bcs", "es"])
def test_a_text_finds_over_http_what_the_index_finds(
    served: Service, home: Path, mode: Any
) -> None:
    with HashIndex.open(home / "i", Encoder.load(home / "m")) as index:
        expected = [hit.id for hit in index.search(Text(RED), k=10, mode=mode)]
    for body in (
        {"json": {"text": RED}},
        {"data": {"text": RED}},
        {"files": {"text": (None, RED)}},
    ):
        answer = post(served, params={"k": 10, "mode": mode}, **body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert [hit["id"] for hit in found["hits"]] == expected
        assert (found["mode"], found["query"]["id"]) == (mode, None)
        times = found["timings_ms"]
        assert times["decode"] < times["encode"]
    assert [hit["label"] for hit in found["hits"]].count("red") >= 8


def test_where_and_radius_go_with_a_text(served: Service) -> None:
    body = {"text": RED, "k": 5, "radius": 16, "where": {"label": "blue"}, "histogram": True}
    found = post(served, json=body).json()
    assert {hit["label"] for hit in found["hits"]} == {"blue"}
    assert sum(found["histogram"]) == 20


def test_a_batch_mixes_texts_with_others_in_their_order(served: Service) -> None:
    answer = post(served, "/batch", json={"ids": [3], "texts": WORDS, "k": 1})
    assert answer.status_code == 200, answer.text
    first, *others = answer.json()["results"]
    assert first["query"]["id"] == 3
    alone = [post(served, json={"text": text, "k": 1}).json() for text in WORDS]
    for one, other in zip(others, alone, strict=True):
        assert distances(one) == pytest.approx(distances(other), rel=1e-4)
    form = post(served, "/batch", data={"texts": WORDS, "k": 1})
    assert [len(each["hits"]) for each in form.json()["results"]] == [1, 1, 1]


def test_spaces_around_a_text_do_not_count(served: Service) -> None:
    codes = {
        post(served, json={"text": text}).json()["query"]["code"] for text in (RED, f"\n {RED}\t ")
    }
    assert len(codes) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("", {"text": "x" * 501}, 413, "text: 501 characters; at most 500 are accepted"),
        ("", {"text": "🥾" * 500}, 200, ""),
        ("", {"text": ""}, 422, "text: expected words, such as red shoes"),
        ("", {"text": " \x1c\n"}, 422, "text: expected words"),
        ("", {"text": 5}, 422, "text: expected words"),
        ("", {"text": ["red"]}, 422, "text: expected words"),
        ("", {"text": None}, 422, "text: expected words"),
        ("", {"text": RED, "id": 3}, 422, "expected one of"),
        ("", {"texts": [RED]}, 422, "texts: extra inputs are not permitted"),
        ("/batch", {"texts": ["red", " "]}, 422, "texts[1]: expected words"),
        ("/batch", {"texts": ["red", "x" * 501]}, 413, "texts[1]: 501 characters"),
        ("/batch", {"texts": RED}, 422, "texts: input should be a valid list"),
        ("/batch", {"texts": [RED] * 33}, 413, "33 queries; at most 32"),
        ("/batch", {"texts": ["🥾" * 500] * 32}, 200, ""),
    ],
)
def test_what_is_no_text_is_refused(
    served: Service, path: str, body: Any, status: int, message: str
) -> None:
    answer = post(served, path, content=json.dumps(body), headers=JSON)  # astral: 12 bytes each
    assert answer.status_code == status, answer.text
    assert message in answer.json().get("detail", "")


JSON = {"Content-Type": "application/json"}


def test_words_that_are_no_unicode_are_refused(served: Service) -> None:
    parts = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n+2AA-\r\n--x--\r\n'
    kind = "multipart/form-data; boundary=x; charset=utf-7"  # half a surrogate pair
    answer = post(served, content=parts, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert "expected words" in answer.json()["detail"]
    half = post(served, content=b'{"text": "\\ud83e"}', headers=JSON)
    assert half.status_code == 422
    assert "valid Unicode text" in half.json()["detail"]


def test_a_text_does_not_stand_in_the_address(served: Service) -> None:
    answer = post(served, params={"text": RED})
    assert answer.status_code == 422
    assert "text: not expected in the address" in answer.json()["detail"]


def test_the_bound_on_what_waits_holds_for_texts(home: Path) -> None:
    with running(home / "i", Encoder.load(home / "m"), Limits(queue=2)) as service:
        refused = post(service, "/batch", json={"texts": WORDS})
        assert refused.status_code == 503
        assert "busy" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "1"
        assert post(service, "/batch", json={"texts": WORDS[:2]}).status_code == 200


def test_texts_of_many_clients_are_encoded_as_alone(served: Service) -> None:
    asked = [f"{text} {n}" for n in range(12) for text in WORDS]

    def ask(text: str) -> list[float]:
        answer = post(served, json={"text": text, "k": 3, "mode": "es"})
        assert answer.status_code == 200, answer.text
        return distances(answer.json())

    alone = [ask(text) for text in asked]
    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(ask, asked))
    for one, other in zip(together, alone, strict=True):  # sums of another batch round otherwise
        assert one == pytest.approx(other, rel=1e-4)
    assert len({tuple(one) for one in alone}) > len(WORDS)


def test_texts_are_measured(served: Service) -> None:
    def counted(metric: str) -> float:
        page = served.client.get("/metrics").text
        return float(re.search(rf"^{re.escape(metric)} (\S+)$", page, re.MULTILINE)[1])  # type: ignore[index]

    names = (
        "hashlens_encode_batch_images_sum",
        'hashlens_stage_seconds_count{stage="encode"}',
        "hashlens_pool_images_count",
    )
    before = [counted(name) for name in names]
    assert post(served, json={"text": RED}).status_code == 200
    assert [counted(name) for name in names] == [each + 1 for each in before]


def test_what_the_service_can_do_is_told(served: Service, service: Service) -> None:
    known = served.client.get("/v1/index").json()
    assert (known["searches_texts"], known["searches_images"]) == (True, True)
    assert known["limits"]["text_characters"] == 500
    assert service.client.get("/v1/index").json()["searches_texts"] is False
    paths = served.client.get("/v1/openapi.json").json()["paths"]
    for path, name in (("/v1/search", "text"), ("/v1/search/batch", "texts")):
        for body in paths[path]["post"]["requestBody"]["content"].values():
            if "properties" in body["schema"]:
                described = body["schema"]["properties"][name]
                one = described.get("items", described)
                assert (one["minLength"], one["maxLength"]) == (1, 500)


def test_models_without_a_text_tower_say_what_to_do(
    service: Service, index_dir: Path, tmp_path: Path
) -> None:
    refused = post(service, json={"text": RED})
    assert refused.status_code == 422
    line = "this model knows no texts; search by 'image' or 'id'"
    assert refused.json()["detail"] == f"text: {line}"
    batch = post(service, "/batch", json={"ids": [1], "texts": [RED]}).json()["results"]
    assert batch[0]["error"] is None
    assert batch[1]["error"] == f"texts[0]: {line}"
    with running(index_dir, None) as without:
        refused = post(without, json={"text": RED})
        assert refused.json()["detail"] == "text: this service has no model; search by 'id'"
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    train(x, tmp_path / "m", 8, unsupervised=True, progress=False)
    with HashIndex.create(tmp_path / "v", Encoder.load(tmp_path / "m")) as index:
        index.add(x)
    with running(tmp_path / "v", Encoder.load(tmp_path / "m")) as vectors:
        refused = post(vectors, json={"text": RED})
        assert refused.status_code == 422
        assert "this model takes vectors; search by 'vector' or 'id'" in refused.json()["detail"]


def test_a_tower_that_cannot_be_loaded_leaves_pictures(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder.load(home / "m")
    config = home / "clip" / "open_clip_config.json"
    before = config.read_text()
    config.write_text("{}")
    try:
        with running(home / "i", encoder) as service:
            assert service.client.get("/v1/index").json()["searches_texts"] is False
            refused = post(service, json={"text": RED})
            picture = {"image": (home / "photos" / "red" / "00.png").read_bytes()}
            found = post(service, files=picture)
    finally:
        config.write_text(before)
    assert refused.status_code == 422
    assert str(home) not in refused.text
    assert found.json()["hits"][0]["name"] == "00.png"
    (told,) = [one for one in caplog.messages if one.startswith("no search by text: ")]
    assert "open_clip" in told
    assert "\n" not in told


@pytest.fixture
def page(browser: Any, served: Service) -> Iterator[Any]:
    """The page in the dark on a phone; fails if anything reached the console."""
    context = browser.new_context(
        base_url=served.url, viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    tab.goto("/")
    expect(tab.locator(".shelf .card")).to_have_count(24)
    yield tab
    context.close()
    assert wrong == []


def hits(page: Any) -> Any:
    return page.locator(".grid:not(.shelf):not(.skeleton) .card")


def shown(page: Any) -> list[int]:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    anchors = hits(page).locator("a[data-id]")
    return [int(value) for value in anchors.evaluate_all("all => all.map(a => a.dataset.id)")]


def describe(page: Any, text: str) -> None:
    page.get_by_label("Or describe it in words").fill(text)
    page.get_by_role("search").get_by_role("button", name="Search").click()


def test_words_are_searched_and_stand_in_the_address(page: Any, served: Service) -> None:
    describe(page, f" {RED} ")
    expect(hits(page)).to_have_count(24)
    expect(page).to_have_url(re.compile(r"\?text=a\+red\+picture$"))
    expect(page).to_have_title(re.compile(f"“{RED}”"))
    found = shown(page)
    answer = post(served, json={"text": RED, "k": 24}).json()
    assert found == [hit["id"] for hit in answer["hits"]]
    expect(page.locator("#query-words")).to_have_text(f"“{RED}”")
    expect(page.locator("#invitation")).to_be_hidden()
    expect(page.locator("#results")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.reload()
    expect(hits(page)).to_have_count(24)
    assert shown(page) == found
    expect(page.get_by_label("Or describe it in words")).to_have_value(RED)


def test_words_are_part_of_the_history(page: Any) -> None:
    for text in WORDS[:2]:
        page.get_by_label("Or describe it in words").fill(text)
        page.keyboard.press("Enter")
        expect(page.locator("#query-words")).to_have_text(f"“{text}”")
        expect(hits(page)).to_have_count(24)
    hits(page).first.locator("a").click()
    expect(page).to_have_url(re.compile(r"\?id=\d+$"))
    expect(page.locator("#query-words")).to_be_hidden()
    expect(page.get_by_label("Or describe it in words")).to_have_value("")
    page.go_back()
    expect(page.locator("#query-words")).to_have_text(f"“{WORDS[1]}”")
    page.go_back()
    expect(page.locator("#query-words")).to_have_text(f"“{WORDS[0]}”")
    expect(hits(page)).to_have_count(24)
    page.go_back()
    expect(page.locator(".shelf .card")).to_have_count(24)
    expect(page.locator("#invitation")).to_be_visible()


def test_words_go_with_settings_and_the_comparison(page: Any) -> None:
    page.goto(f"/?text={RED}&k=12&where=" + json.dumps({"label": "blue"}))
    expect(hits(page)).to_have_count(12)
    assert set(hits(page).locator(".label").all_text_contents()) == {"blue"}
    page.get_by_text("Search settings").click()
    page.get_by_text("Compare", exact=True).click()
    names = page.locator(".comparison section h3")
    expect(names).to_have_text(["ES", "BCS", "ACS", "HDS"])
    expect(page).to_have_url(re.compile("text=a.*mode=compare"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_long_words_fit_and_longer_ones_are_told(page: Any) -> None:
    field = page.get_by_label("Or describe it in words")
    expect(field).to_have_attribute("maxlength", "500")
    describe(page, "boots" * 100)
    expect(hits(page)).to_have_count(24)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    height = page.locator("#frame").evaluate("frame => frame.getBoundingClientRect().height")
    assert height < 300


def test_an_address_with_words_that_are_refused_offers_a_way_out(
    browser: Any, served: Service, service: Service
) -> None:
    tab = browser.new_page(base_url=served.url)
    tab.goto("/?text=" + "x" * 501)
    alert = tab.get_by_role("alert")
    expect(alert).to_contain_text("501 characters; at most 500 are accepted")
    alert.get_by_role("button", name="Change the words").click()
    expect(tab.get_by_label("Or describe it in words")).to_be_focused()
    tab.goto(f"{service.url}/?text=red")  # a service whose model knows no texts
    expect(alert).to_contain_text("This model knows no texts; search by 'image' or 'id'")
    expect(tab.get_by_label("Or describe it in words")).to_be_hidden()
    alert.get_by_role("button", name="Show the index").click()
    expect(tab.locator(".shelf .card")).to_have_count(24)
    tab.close()
