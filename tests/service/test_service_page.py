"""The page in a real browser: drop, click, go back, switch, filter, and what goes wrong."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Service, running

from hashlens import Encoder, Hasher, HashIndex
from hashlens.service.limits import Limits

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'dev'")
expect = playwright_api.expect

_DROP = """([data, type, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""
_PASTE = """([data, type, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    """A fresh page on the start state; fails if anything reached the console or left the host."""
    context = browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    tab.on(
        "request",
        lambda r: None if r.url.startswith((service.url, "blob:")) else wrong.append(r.url),
    )
    tab.goto("/")
    expect(tab.locator(".shelf .card")).to_have_count(24)
    yield tab
    context.close()
    allowed = re.compile(r"status of (404|413|422|503)")  # the browser logs each refusal itself
    assert [line for line in wrong if not allowed.search(line)] == []


def drop(page: Any, data: bytes, kind: str = "image/png", name: str = "a.png") -> None:
    page.evaluate(_DROP, [base64.b64encode(data).decode(), kind, name])


def hits(page: Any) -> Any:
    return page.locator(".grid:not(.shelf):not(.skeleton) .card")


def ids(page: Any) -> list[int]:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    anchors = page.locator(".grid:not(.skeleton) a[data-id]")
    return [int(value) for value in anchors.evaluate_all("all => all.map(a => a.dataset.id)")]


def test_a_dropped_picture_finds_hits(page: Any, service: Service, picture: bytes) -> None:
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    answer = service.client.post(
        "/v1/search", data={"k": 24}, files={"image": ("query", picture)}
    ).json()
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    expect(page.locator("#results-title")).to_have_text("24 nearest images")
    expect(page.locator("#query-name")).to_have_text("Your picture")
    first = answer["hits"][0]
    card = hits(page).first
    expect(card.locator(".label")).to_have_text(first["label"])
    expect(card.locator(".euclidean")).to_have_text(f"{first['euclidean']:.2f}")
    said = card.locator("svg").get_attribute("aria-label")
    assert said.startswith("no bit" if not first["hamming"] else f"{first['hamming']} of 24 bits")
    expect(page.locator("#times-list dd")).to_have_count(4)


def test_pasting_and_choosing_search_too(page: Any, picture: bytes) -> None:
    page.evaluate(_PASTE, [base64.b64encode(picture).decode(), "image/png", "a.png"])
    expect(hits(page)).to_have_count(24)
    found = ids(page)
    page.locator("#home").click()
    expect(page.locator(".shelf .card")).to_have_count(24)
    file = {"name": "b.png", "mimeType": "image/png", "buffer": picture}
    page.locator("#file").set_input_files(file)
    expect(hits(page)).to_have_count(24)
    assert ids(page) == found


def test_a_result_is_a_query_and_back_returns(page: Any, picture: bytes) -> None:
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    found = ids(page)
    hits(page).nth(2).locator("a").click()
    expect(page).to_have_url(re.compile(rf"\?id={found[2]}$"))
    expect(page.locator("#query-name")).to_contain_text(f"image {found[2]}")
    page.go_back()
    expect(page.locator("#query-name")).to_have_text("Your picture")
    expect(page.locator(".grid a[data-id]").first).to_have_attribute("data-id", str(found[0]))
    assert ids(page) == found
    page.go_back()
    expect(page.locator(".shelf .card")).to_have_count(24)
    page.go_forward()
    expect(page.locator("#query-name")).to_have_text("Your picture")


def test_an_address_shows_what_it_showed(page: Any, service: Service) -> None:
    where = json.dumps({"label": "cross"})
    page.goto(f"/?id=4&mode=bcs&k=12&radius=9&where={where}")
    expect(hits(page)).to_have_count(12)
    fields = {"id": 4, "mode": "bcs", "k": 12, "radius": 9, "where": where}
    answer = service.client.post("/v1/search", data=fields).json()
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    expect(page.locator("input[value=bcs]")).to_be_checked()
    expect(page.locator("#radius")).to_have_value("9")
    expect(page.locator("#label")).to_have_value("cross")
    page.reload()
    expect(hits(page)).to_have_count(12)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]


def test_modes_switch_and_compare_side_by_side(page: Any) -> None:
    page.locator(".shelf a").first.click()
    expect(hits(page)).to_have_count(24)
    expect(hits(page).first.locator(".euclidean")).to_be_visible()
    page.get_by_text("BCS", exact=True).click()
    expect(page).to_have_url(re.compile("mode=bcs"))
    expect(page.locator(".euclidean")).to_have_count(0)
    page.get_by_text("ACS", exact=True).click()
    expect(page).to_have_url(re.compile("mode=acs"))
    expect(page.locator("#mode-hint")).to_contain_text("how sure the query is of each bit")
    expect(hits(page).first.locator(".asymmetric")).to_be_visible()
    expect(page.locator("#pool")).to_contain_text("Pool: 89 of 89")
    page.get_by_text("Compare", exact=True).click()
    rows = page.locator(".comparison section")
    expect(rows).to_have_count(3)
    expect(rows.locator("h3")).to_have_text(["ES", "BCS", "HDS"])
    for i in range(3):
        expect(rows.nth(i).locator("li")).to_have_count(6)
        expect(rows.nth(i).locator(".agree")).to_contain_text("share the label")
    page.go_back()
    expect(hits(page)).to_have_count(24)


def test_a_picture_is_compared_in_all_modes(page: Any, service: Service, picture: bytes) -> None:
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    page.get_by_text("Compare", exact=True).click()
    rows = page.locator(".comparison section")
    expect(rows.locator("h3")).to_have_text(["ES", "BCS", "ACS", "HDS"])
    expect(page.locator("#results-title")).to_have_text("Four ways to search")
    answer = service.client.post(
        "/v1/search", data={"k": 6, "mode": "acs"}, files={"image": ("query", picture)}
    ).json()
    shown = rows.nth(2).locator("a[data-id]").evaluate_all("all => all.map(a => a.dataset.id)")
    assert [int(value) for value in shown] == [hit["id"] for hit in answer["hits"]]
    label = rows.first.locator(".label").first
    label.evaluate("element => element.textContent = 'long-'.repeat(30)")
    assert label.evaluate("element => element.offsetWidth <= element.closest('li').offsetWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_page_begins_with_the_best_mode(
    browser: Any, index_dir: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "mode", "acs")
    with running(index_dir, encoder) as service:
        tab = browser.new_page(base_url=service.url)
        tab.goto("/?id=4")
        expect(tab.locator("input[value=acs]")).to_be_checked()
        expect(hits(tab).first.locator(".asymmetric")).to_be_visible()
        tab.get_by_text("HDS", exact=True).click()
        expect(tab).to_have_url(re.compile("mode=hds"))
        tab.close()


def test_filters_and_radius_narrow_the_results(page: Any, service: Service) -> None:
    page.goto("/?id=4")
    expect(hits(page)).to_have_count(24)
    page.locator("#label").select_option("circle")
    expect(page).to_have_url(re.compile("circle"))
    expect(page.locator("#status")).to_contain_text("pool of 30")
    assert set(hits(page).locator(".label").all_text_contents()) == {"circle"}
    page.get_by_label("shelf").select_option(label="left")
    expect(page.locator("#status")).to_contain_text("pool of 15")
    page.locator("#radius").fill("6")
    expect(page.locator("#radius-value")).to_have_text("6 bits, as proposed")
    page.locator("#radius").fill("0")
    expect(page.locator("#radius-value")).to_have_text("0 bits")
    fields = {"id": 4, "radius": 0, "where": json.dumps({"label": "circle", "shelf": "left"})}
    left = service.client.post("/v1/search", data=fields).json()["pool"]
    expect(page.locator("#pool")).to_have_text(f"Pool: {left} of 15 images")


def test_an_empty_result_offers_a_way_out(page: Any) -> None:
    page.goto("/?id=4&where=" + json.dumps({"label": "no such label"}))
    expect(page.locator(".empty")).to_be_visible()
    expect(page.get_by_label("Label")).to_have_value("no such label")
    page.get_by_text("Clear radius and filter").click()
    expect(hits(page)).to_have_count(24)


def test_a_wrong_file_is_told_in_one_line(page: Any, picture: bytes) -> None:
    drop(page, b"%PDF-1.7", "application/pdf", "a.pdf")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Not an image; expected one of JPEG")
    expect(page.locator("#invitation")).to_be_visible()
    with page.expect_file_chooser():
        alert.get_by_role("button", name="Choose another picture").click()
    drop(page, picture)
    expect(hits(page)).to_have_count(24)


def test_an_address_of_an_image_that_is_gone_leads_to_the_index(page: Any) -> None:
    page.goto("/?id=999999")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("no such image")
    alert.get_by_role("button", name="Show the index").click()
    expect(page.locator(".shelf .card")).to_have_count(24)


def test_a_busy_service_is_told_and_tried_again(
    browser: Any, index_dir: Path, encoder: Encoder
) -> None:
    with running(index_dir, encoder, Limits(queue=0)) as busy:
        tab = browser.new_page(base_url=busy.url)
        tab.goto("/?id=4")
        alert = tab.get_by_role("alert")
        expect(alert).to_contain_text("busy")
        busy.app.state.engine.slots.capacity = 8
        alert.get_by_role("button").click()
        expect(hits(tab)).to_have_count(24)
        tab.close()


def test_an_index_of_codes_alone_offers_what_it_can(browser: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with HashIndex.create(tmp_path / "codes.idx", bits=64, feature_dim=0) as index:
        codes = random.integers(0, 256, (1500, 8), dtype=np.uint8)
        index.add_encoded(codes, None, [f"/nowhere/{i}.png" for i in range(1500)])
    with running(tmp_path / "codes.idx", None) as service:
        tab = browser.new_page(base_url=service.url)
        tab.goto("/?id=7")
        expect(hits(tab)).to_have_count(24)
        expect(tab.get_by_text("BCS", exact=True)).to_be_visible()
        expect(tab.get_by_text("ACS", exact=True)).to_be_visible()
        expect(tab.locator("input[value=bcs]")).to_be_checked()
        expect(tab.get_by_text("HDS", exact=True)).to_be_hidden()
        expect(tab.locator("#choose")).to_be_hidden()
        expect(hits(tab).locator(".record")).to_have_count(24)
        tab.close()


@pytest.mark.parametrize("show_files", [False, True])
def test_what_has_no_picture_is_shown_as_a_record(
    browser: Any, tmp_path: Path, show_files: bool
) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    uris = [f"s3://shop/{i}/boot.jpg" if i % 2 else f"https://shop.test/{i}.jpg" for i in range(39)]
    about = {"brand": "x", "sizes": [36, 37], "price": 9, "season": "winter", "stock": 4}
    with HashIndex.create(tmp_path / "v.idx", Hasher(bits=16).fit(vectors)) as index:
        index.add(vectors, ["boot"] * 40, [about] * 40, uris=[*uris, "sku-39"])
    with running(tmp_path / "v.idx", None, show_files=show_files) as service:
        context = browser.new_context(
            base_url=service.url, viewport={"width": 390, "height": 844}, color_scheme="dark"
        )
        tab = context.new_page()
        tab.route("https://**", lambda route: route.abort())
        tab.goto("/?id=7")
        expect(hits(tab).locator(".record")).to_have_count(24)
        expect(hits(tab).locator("img")).to_have_count(0)
        first = hits(tab).first
        known = service.client.post("/v1/search", data={"id": 7}).json()["hits"][0]
        expect(first.locator(".record .number")).to_have_text(f"No. {known['id']}")
        expect(first.locator(".record .label")).to_have_text("boot")
        name = uris[known["id"]] if show_files else known["name"]
        expect(first.locator(".record .file")).to_have_text(name)
        expect(first.locator(".record dd").nth(1)).to_have_text("[36,37]")
        expect(first.locator(".record .more")).to_have_text("and 1 more")
        expect(first.locator(".caption .label")).to_be_hidden()
        expect(tab.locator("#query-record .number")).to_have_text("No. 7")
        expect(tab.locator("#invitation")).to_be_hidden()
        expect(tab.locator("#open-original")).to_be_hidden()  # nothing would be behind it
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.goto("/?id=6")
        expect(tab.locator("#query-record")).to_be_visible()
        if show_files:
            expect(tab.locator("#copy-path")).to_have_text("Copy URI")
            expect(tab.locator("#open-original")).to_have_attribute("href", uris[6])
        first.locator("a").click()
        expect(tab).not_to_have_url(re.compile("id=6$"))
        context.close()


def test_the_pool_of_hds_is_told(browser: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with HashIndex.create(tmp_path / "many.idx", bits=64, feature_dim=2) as index:
        codes = random.integers(0, 256, (1500, 8), dtype=np.uint8)
        features = random.normal(size=(1500, 2)).astype(np.float32)
        index.add_encoded(codes, features, [f"/nowhere/{i}.png" for i in range(1500)])
    with running(tmp_path / "many.idx", None) as service:
        tab = browser.new_page(base_url=service.url)
        tab.goto("/?id=7")
        expect(tab.locator("#pool")).to_have_text("Pool: the nearest 200 of 1,499 images")
        tab.close()


def test_everything_can_be_reached_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name"
                " || document.activeElement.dataset.id"
            )
        )
    for name in ("home", "theme", "file", "shuffle", "mode", "label", "count"):
        assert name in reached
    assert any(str(name).isdecimal() for name in reached), "the results come after the settings"
    page.keyboard.press("Enter")
    expect(hits(page)).to_have_count(24)
    expect(page.locator("#results")).to_be_focused()


def test_a_phone_shows_the_page_without_sideways_scrolling(browser: Any, service: Service) -> None:
    context = browser.new_context(base_url=service.url, viewport={"width": 360, "height": 740})
    tab = context.new_page()
    for path in ("/", "/?id=4", "/?id=4&mode=compare"):
        tab.goto(path)
        expect(tab.locator("#content .card").first).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.get_by_text("Search settings").click()
    expect(tab.locator("#radius")).to_be_visible()
    context.close()


def test_dark_mode_follows_the_system_and_the_switch(browser: Any, service: Service) -> None:
    context = browser.new_context(base_url=service.url, color_scheme="dark")
    tab = context.new_page()
    tab.goto("/")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = tab.evaluate(ground)
    assert max(int(part) for part in re.findall(r"\d+", dark)[:3]) < 60
    expect(tab.locator("#theme")).to_have_text("Light")
    tab.locator("#theme").click()
    expect(tab.locator("#theme")).to_have_text("Dark")
    assert min(int(part) for part in re.findall(r"\d+", tab.evaluate(ground))[:3]) > 200
    tab.reload()
    assert tab.evaluate(ground) != dark
    context.close()


def test_text_stands_out_from_its_ground(browser: Any, service: Service) -> None:
    """WCAG AA: 4.5 to 1 for the page's colours of text."""
    for scheme in ("light", "dark"):
        tab = browser.new_page(base_url=service.url, color_scheme=scheme)
        tab.goto("/")
        names = ["ink", "muted", "accent", "cool", "paper", "plate"]
        style = "getComputedStyle(document.documentElement)"
        colours = {
            name: tab.evaluate(f"{style}.getPropertyValue('--{name}')").strip() for name in names
        }
        for text in ("ink", "muted", "accent", "cool"):
            for ground in ("paper", "plate"):
                ratio = contrast(colours[text], colours[ground])
                assert ratio >= 4.5, f"{text} on {ground}, {scheme}: {ratio:.2f}"
        tab.close()


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_names_the_files(browser: Any, index_dir: Path, encoder: Encoder) -> None:
    with running(index_dir, encoder, show_files=True) as service:
        context = browser.new_context(base_url=service.url)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = context.new_page()
        tab.goto("/?id=4")
        path = service.client.get("/v1/images/4").json()["path"]
        expect(tab.locator("#query-place")).to_have_text(path)
        name = service.client.post("/v1/search", data={"id": 4}).json()["hits"][0]["name"]
        expect(hits(tab).first.locator(".file")).to_have_text(name)
        tab.locator("#copy-path").click()
        expect(tab.locator("#copy-path")).to_have_text("Copied")
        assert tab.evaluate("navigator.clipboard.readText()") == path
        with context.expect_page() as opened:
            tab.locator("#open-original").click()
        assert opened.value.url.endswith("/v1/images/4/file")
        context.close()


def test_skipping_to_the_results_keeps_them(page: Any, picture: bytes) -> None:
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    found, asked = ids(page), []
    page.on("request", lambda request: asked.append(request.url))
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    expect(page.locator("#query-name")).to_have_text("Your picture")
    assert ids(page) == found
    assert not [url for url in asked if "/v1/" in url]


def test_a_search_that_is_left_does_not_keep_the_page_busy(page: Any, picture: bytes) -> None:
    page.route("**/v1/search", lambda route: None)  # never answered
    drop(page, picture)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    page.locator("#home").click()
    expect(page.locator(".shelf .card")).to_have_count(24)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def test_a_picture_of_before_a_reload_is_not_taken_for_another(page: Any, picture: bytes) -> None:
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    page.reload()
    expect(page.locator("#status")).to_contain_text("drop it again")
    drop(page, picture)
    expect(hits(page)).to_have_count(24)
    page.go_back()
    expect(page.locator("#status")).to_contain_text("drop it again")


def test_without_a_model_no_picture_is_asked_for(browser: Any, index_dir: Path) -> None:
    with running(index_dir, None) as service:
        context = browser.new_context(base_url=service.url)
        tab = context.new_page()
        tab.goto("/")
        expect(tab.locator(".shelf .card")).to_have_count(24)
        expect(tab.locator("#choose")).to_be_hidden()
        expect(tab.locator("#file")).to_be_disabled()
        expect(tab.locator("#invitation")).not_to_contain_text("Drop a picture")
        context.close()


def test_a_filter_of_the_address_is_seen_and_kept(page: Any) -> None:
    where = json.dumps({"price": {"<": 20}, "shelf": "left"})
    page.goto(f"/?id=4&where={where}")
    expect(hits(page)).to_have_count(10)
    price = page.get_by_label("price")
    expect(price.locator("option:checked")).to_have_text('{"<":20}')
    page.locator("input[value=bcs]").check(force=True)
    expect(page).to_have_url(re.compile("mode=bcs"))
    expect(hits(page)).to_have_count(10)
    price.select_option("any")
    expect(hits(page)).to_have_count(24)
    expect(page.get_by_label("shelf").locator("option:checked")).to_have_text("left")
