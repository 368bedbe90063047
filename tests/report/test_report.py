"""Tables, sheets, plots and the page that holds them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hashlens import ImageError, InvalidInputError
from hashlens.report.page import Page, Table
from hashlens.report.plot import Curve, panels, plot_bars, plot_curves, plot_steps, save_figure
from hashlens.report.sheet import RIGHT, WRONG, Neighbour, SheetQuery, picture_sheet

TABLE = Table(["mode", "mAP@1000", "images"], [["bcs", 0.5, 1797], ["a|<b>", None, 3]])


def _load(uri):
    if uri == "broken":
        raise ImageError("broken: expected an image")
    return Image.new("L", (8, 8), int(uri))


def test_table_as_text_is_aligned():
    assert TABLE.text().splitlines() == [
        "mode   mAP@1000  images",
        "-----  --------  ------",
        "bcs      0.5000   1,797",
        "a|<b>         –       3",
    ]


def test_table_as_markdown_escapes_bars():
    assert TABLE.markdown().splitlines() == [
        "| mode   | mAP@1000 | images |",
        "| ------ | -------: | -----: |",
        "| bcs    |   0.5000 |  1,797 |",
        "| a\\|<b> |        – |      3 |",
    ]


def test_table_as_html_escapes_cells():
    assert "a|&lt;b&gt;" in TABLE.html()
    assert "<b>" not in TABLE.html()


def test_sheet_frames_right_and_wrong_by_colour_and_mark():
    nearest = [Neighbour("1", "one", right=True), Neighbour("2", "two", right=False)]
    sheet = np.asarray(picture_sheet([SheetQuery("0", "one", {"BCS": nearest})], _load))
    for colour in (RIGHT, WRONG):
        places = np.argwhere((sheet == colour).all(axis=2))
        assert len(places) > 4 * 4 * 100  # a frame 4 px wide around a tile of 120 px
    unframed = [Neighbour("1", "one"), Neighbour("2", "two")]
    plain = np.asarray(picture_sheet([SheetQuery("0", "one", {"BCS": unframed})], _load))
    assert plain.shape == sheet.shape
    assert not (plain == RIGHT).all(axis=2).any()


def test_sheet_marks_differ_without_colour():
    def grey(right):
        query = SheetQuery("0", "q", {"BCS": [Neighbour("0", "", right=right)]})
        sheet = np.asarray(picture_sheet([query], _load))
        return (sheet == 255).all(axis=2)  # the white strokes of the mark

    assert (grey(True) != grey(False)).any()


def test_sheet_draws_the_bits_of_the_query():
    def dark(bits):
        query = SheetQuery("255", "", {"BCS": []}, bits)
        return int((np.asarray(picture_sheet([query], _load)) < 40).all(axis=2).sum())

    # 24 ones, each a filled square
    assert dark([1, 0, 0, 1] * 12) == dark([0] * 48) + 24 * 13 * 13


def test_sheet_goes_on_past_a_picture_that_cannot_be_read():
    sheet = picture_sheet([SheetQuery("broken", "x", {"ES": [Neighbour("1", "1")]})], _load)
    assert sheet.mode == "RGB"


def test_sheet_needs_a_query():
    with pytest.raises(InvalidInputError, match="at least one query"):
        picture_sheet([], _load)


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_page_that_asks_for_nothing_from_outside(tmp_path):
    figure = plot_curves(
        {"BCS": Curve([1, 10], [0.9, 0.8]), "LSH": Curve([1, 10], [0.1, 0.1], "dotted")}
    )
    page = Page(tmp_path / "new", "Digits & <codes>", "1,797 images")
    page.heading("Scores")
    page.table(TABLE, "Ties are in the order of ids.")
    page.figure(figure, "precision_at_k", "precision at k")
    page.picture(Image.new("RGB", (4, 4)), "sheet", 'a "sheet"')
    page.commands("hashlens train 'my photos' --out model")
    page.write_json({"name": "Zoë"}, "results")
    text = page.write().read_text(encoding="utf-8")
    links = _Links()
    links.feed(text)
    assert links.open == []
    assert len(links.sources) == 2
    assert all(source.startswith("data:image/") for source in links.sources)
    assert re.search(r"@import|url\(|<script|<link", text) is None
    assert "<title>Digits &amp; &lt;codes&gt;</title>" in text
    folder = tmp_path / "new"
    assert (folder / "results.json").read_text(encoding="utf-8") == '{\n  "name": "Zoë"\n}\n'
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Digits & <codes>\n\n1,797 images\n\n## Scores\n\n| mode")
    assert "![precision at k](precision_at_k.svg)" in text
    assert '![a "sheet"](sheet.png)' in text


def test_pictures_are_written_next_to_the_page(tmp_path):
    page = Page(tmp_path, "t")
    page.figure(plot_steps({"within": [1, 2], "between": [0, 3]}, line=1, xlabel="d"), "d", "pairs")
    page.picture(Image.new("RGB", (4, 4)), "sheet", "a sheet")
    assert {path.name for path in tmp_path.iterdir()} == {"d.svg", "d.png", "sheet.png"}
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.width > 600


def test_panels_hold_curves_and_bars_side_by_side(tmp_path):
    left, right = panels(2)
    measured = Curve([1, 2], [3, 5], "points")
    curves = {"seen": measured, "fitted": Curve([1, 2], [3, 5], "model", like="seen")}
    plot_curves(curves, axes=left, xlabel="n")
    plot_bars({"a": [1, 2], "b": [2, 3]}, ["x", "y"], axes=right, ylabel="ms")
    points, line = left.get_lines()
    assert points.get_color() == line.get_color()
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["seen"]
    assert len(right.patches) == 4
    assert save_figure(left.figure, tmp_path, "two", svg=False).name == "two.png"
    assert len(list(tmp_path.iterdir())) == 1


def test_curves_of_a_plot_differ_in_more_than_colour():
    figure = plot_curves({str(i): Curve([1, 2], [i, i]) for i in range(10)})
    assert len({line.get_marker() for line in figure.axes[0].get_lines()}) == 10


def test_names_at_the_ends_of_curves_do_not_touch():
    curves = {str(i): Curve([1, 2], [i, 0.001 * i]) for i in range(10)}
    axes = plot_curves(curves, ends=True).axes[0]
    low, high = axes.get_ylim()
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.99 * (high - low) / 26


def test_a_table_of_dictionaries():
    table = Table.of([{"n": 1000, "ms": 0.5}], [("codes", "n", ",d"), ("time", "ms", ".2f")])
    assert table.text().splitlines()[2] == "1,000  0.50"
