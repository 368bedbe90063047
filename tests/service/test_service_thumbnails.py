"""Thumbnails come from indexed files alone, wherever their paths lead now."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from hashlens import Encoder, HashIndex, open_source
from hashlens.data.folders import list_folder
from hashlens.files import content_digest
from hashlens.service.app import create_app
from hashlens.service.limits import Limits
from hashlens.service.schemas import Refused
from hashlens.service.thumbnails import Thumbnails


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path.resolve() / "pictures" / "cats"
    home.mkdir(parents=True)
    Image.new("RGB", (1200, 600), "teal").save(home / "large.jpg")
    Image.new("L", (28, 28), 200).save(home / "small.png")
    return home


def test_large_images_shrink_and_small_ones_stay(folder: Path) -> None:
    thumbnails = Thumbnails(Limits(thumbnail_side=320))
    large = thumbnails.get(str(folder / "large.jpg"))
    small = thumbnails.get(str(folder / "small.png"))
    assert (large.media_type, opened(large.data).size) == ("image/webp", (320, 160))
    assert (small.media_type, opened(small.data).size) == ("image/png", (28, 28))


def test_a_thumbnail_is_made_once_and_again_when_the_file_changes(folder: Path) -> None:
    thumbnails = Thumbnails(Limits())
    path = folder / "small.png"
    first = thumbnails.get(str(path))
    assert thumbnails.get(str(path)) is first
    Image.new("L", (40, 40), 10).save(path)
    changed = thumbnails.get(str(path))
    assert opened(changed.data).size == (40, 40)
    assert changed.etag != first.etag


def test_the_memory_kept_is_bounded(folder: Path) -> None:
    thumbnails = Thumbnails(Limits(thumbnail_cache_bytes=1))
    first = thumbnails.get(str(folder / "small.png"))
    thumbnails.get(str(folder / "large.jpg"))
    assert thumbnails.get(str(folder / "small.png")) is not first


def test_a_file_that_became_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    path = folder / "small.png"
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(Refused) as refusal:
        Thumbnails(Limits()).get(str(path))
    assert refusal.value.status_code == 404
    assert str(tmp_path) not in refusal.value.detail


def test_a_folder_that_became_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (9, 9)).save(elsewhere / "small.png")
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(elsewhere)
    with pytest.raises(Refused):
        Thumbnails(Limits()).get(str(folder / "small.png"))


def link_to_folder(folder: Path) -> Path:
    """The same folder by another way."""
    link = folder.parent.parent / "link"
    link.symlink_to(folder.parent)
    return link / folder.name


@pytest.mark.parametrize("swapped_back", [False, True])
def test_a_folder_that_is_swapped_for_a_link_while_a_file_is_opened_shows_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped_back: bool
) -> None:
    """Between finding the file and opening it, and perhaps back again right after."""
    secret = tmp_path.resolve() / "secret"
    secret.mkdir()
    Image.new("L", (9, 9), 1).save(secret / "small.png")
    aside, real_open = folder.with_name("aside"), os.open

    def opening(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path) != folder / "small.png":
            return real_open(path, flags, *more, **options)
        folder.rename(aside)
        folder.symlink_to(secret)
        descriptor = real_open(path, flags, *more, **options)
        if swapped_back:
            folder.unlink()
            aside.rename(folder)
        return descriptor

    thumbnails = Thumbnails(Limits())
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opening)
        with pytest.raises(Refused):
            thumbnails.get(str(folder / "small.png"))


def write_rows(path: Path, value: int | str) -> None:
    """A table of one picture: of a shade, or in the file of a name."""
    buffer = io.BytesIO()
    if isinstance(value, int):
        Image.new("L", (9, 9), value).save(buffer, "PNG")
    cell = value if isinstance(value, str) else buffer.getvalue()
    pq.write_table(pa.table({"image": [cell]}), path)


@pytest.mark.parametrize("swapped_back", [False, True])
def test_a_folder_that_is_swapped_while_a_table_is_opened_shows_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped_back: bool
) -> None:
    secret = tmp_path.resolve() / "secret"
    secret.mkdir()
    write_rows(folder / "rows.parquet", 200)
    write_rows(secret / "rows.parquet", 1)
    aside, real_stat, real_open = folder.with_name("aside"), os.stat, pq.ParquetFile
    tables = []

    def looking(path: Any, **options: Any) -> Any:
        """The first look at the table after it was found, right before it is opened."""
        if str(path) == str(folder / "rows.parquet") and not aside.exists():
            folder.rename(aside)
            folder.symlink_to(secret)
        return real_stat(path, **options)

    def opening(*arguments: Any, **options: Any) -> Any:
        tables.append(real_open(*arguments, **options))
        if swapped_back:
            folder.unlink()
            aside.rename(folder)
        return tables[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looking)
        patch.setattr(pq, "ParquetFile", opening)
        with pytest.raises(Refused):
            Thumbnails(Limits()).get(f"{folder / 'rows.parquet'}#0")
    assert len(tables) == 1
    if swapped_back:
        shown = Thumbnails(Limits()).get(f"{folder / 'rows.parquet'}#0")
        assert opened(shown.data).getpixel((0, 0)) == 200


def test_a_file_that_a_row_names_is_shown_unless_it_leads_through_a_link(
    folder: Path, tmp_path: Path
) -> None:
    write_rows(folder / "rows.parquet", "../cats/large.jpg")
    row = f"{folder / 'rows.parquet'}#0"
    assert opened(Thumbnails(Limits()).get(row).data).size == (320, 160)
    assert Thumbnails(Limits()).original(row).data == (folder / "large.jpg").read_bytes()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.jpg")
    (folder / "large.jpg").unlink()
    (folder / "large.jpg").symlink_to(tmp_path / "secret.jpg")
    write_rows(folder / "circle.parquet", "circle.parquet#0")
    for uri in (row, f"{folder / 'circle.parquet'}#0"):
        for show in (Thumbnails(Limits()).get, Thumbnails(Limits()).original):
            with pytest.raises(Refused):
                show(uri)


def test_through_a_link_only_what_was_indexed_is_shown(folder: Path, tmp_path: Path) -> None:
    path = link_to_folder(folder) / "small.png"
    digest = content_digest(path.read_bytes())
    thumbnails = Thumbnails(Limits())
    assert opened(thumbnails.get(str(path), digest).data).size == (28, 28)
    with pytest.raises(Refused):
        thumbnails.get(str(path))
    elsewhere = tmp_path / "elsewhere" / "cats"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(elsewhere / "small.png")
    path.parent.parent.unlink()
    path.parent.parent.symlink_to(elsewhere.parent)
    with pytest.raises(Refused) as refusal:
        thumbnails.get(str(path), digest)
    assert str(tmp_path) not in refusal.value.detail


def test_a_file_that_is_itself_a_link_is_shown_while_its_content_stays(folder: Path) -> None:
    path = folder / "link.jpg"
    path.symlink_to(folder / "large.jpg")
    digest = content_digest(path.read_bytes())
    assert opened(Thumbnails(Limits()).get(str(path), digest).data).size == (320, 160)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(Refused):
        Thumbnails(Limits()).get(str(path), digest)


def test_dots_in_a_path_are_refused_whatever_it_holds(folder: Path) -> None:
    digest = content_digest((folder / "small.png").read_bytes())
    with pytest.raises(Refused):
        Thumbnails(Limits()).get(str(folder / ".." / "cats" / "small.png"), digest)


def test_a_folder_reached_through_a_link_is_indexed_served_and_synced(
    folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    linked = link_to_folder(folder).parent
    with HashIndex.create(tmp_path / "linked.idx", encoder) as index:
        index.add(open_source(linked).uris)
        client = TestClient(create_app(index, encoder))
        with client:
            answers = [client.get(f"/v1/images/{i}/thumbnail") for i in index.ids()]
            assert [answer.status_code for answer in answers] == [200, 200]
            Image.new("L", (28, 28), 3).save(folder / "small.png")  # not what was indexed
            statuses = [client.get(f"/v1/images/{i}/thumbnail").status_code for i in index.ids()]
            assert sorted(statuses) == [200, 404]
            report = index.sync(linked, list_folder(linked).paths)
            assert (report.added, report.updated, report.unchanged) == (0, 1, 1)
            assert {client.get(f"/v1/images/{i}/thumbnail").status_code for i in index.ids()} == {
                200
            }


def test_odd_paths_are_refused(folder: Path) -> None:
    thumbnails = Thumbnails(Limits())
    os.mkfifo(folder / "pipe.png")
    for uri in (
        str(folder / ".." / "cats" / "small.png"),
        f"/{folder}/small.png",
        str(folder),
        str(folder / "pipe.png"),
        str(folder / "gone.png"),
        "cats/small.png",
        "",
        str(folder / "gone.parquet#3"),
    ):
        with pytest.raises(Refused):
            thumbnails.get(uri)


def test_a_file_that_is_no_image_any_more_is_refused(folder: Path) -> None:
    (folder / "small.png").write_text("root:x:0:0")
    with pytest.raises(Refused):
        Thumbnails(Limits()).get(str(folder / "small.png"))


def test_images_in_no_file_have_thumbnails_too() -> None:
    pytest.importorskip("sklearn")
    made = Thumbnails(Limits()).get("digits#7")
    assert opened(made.data).size == (8, 8)


@pytest.mark.parametrize("scheme", ["nowhere", "NOWHERE"])
def test_an_image_at_a_remote_uri_is_called_remote(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Refused, match=f"remote {scheme}://"):
        Thumbnails(Limits()).get(f"{scheme}://bucket/photo.jpg")
    assert "link" not in caplog.text


def test_a_name_that_is_no_file_is_not_called_a_link(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("sku-17", "catalogue/sku-17", "urn:isbn:17"):
        with pytest.raises(Refused):
            Thumbnails(Limits()).get(name)
    assert not caplog.records
