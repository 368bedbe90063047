"""Thumbnails come from indexed files alone, wherever their paths lead now."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
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
