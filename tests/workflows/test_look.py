"""``hashlens look``: a stranger's folder, from the first command to the page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from hashlens import Encoder, HashIndex, open_source
from hashlens.cli.main import app
from hashlens.errors import ModelError, SourceError
from hashlens.workflows.look import prepare_folder, why_no_classes
from image_builders import picture, write_class_folder

WEIGHTS = "mobilenetv2_100_imagenet.safetensors"
GOLDEN = Path(__file__).parents[1] / "data" / "models" / "format-3"  # of the classes cat, dog, eel


def holiday(folder: Path, count: int = 24) -> Path:
    """Pictures by year and month, next to what phones, disks and photo programs leave."""
    for number in range(count):
        month = folder / f"20{21 + number % 3}" / f"{1 + number % 4:02}"
        month.mkdir(parents=True, exist_ok=True)
        kind = ("circle", "cross", "stripe")[number % 3]
        picture(kind, number, side=96).save(month / f"IMG_{number:04}.jpg")
    for junk in ("@eaDir", ".thumbnails", "#recycle"):
        (folder / junk).mkdir()
        picture("cross", 99).save(folder / junk / "small.jpg")
    (folder / "2021" / "raw.cr2").write_bytes(b"raw")
    (folder / "Thumbs.db").write_bytes(b"db")
    return folder


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png"] * 3, "no sub-folders"),
        ([f"Rome/{i}.png" for i in range(9)], "only one sub-folder, Rome"),
        ([f"{i}/{j}.png" for i in range(5) for j in range(2)], "of 10 images only 0"),
        ([f"{c}/{j}.png" for c in "ab" for j in range(5)] + [f"{i}.png" for i in range(30)], "40"),
        ([f"{c}/{j}.png" for c in "ab" for j in range(5)], None),
    ],
)
def test_sub_folders_are_classes_where_they_can_teach(
    names: list[str], reason: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture("cross", 1).save(tmp_path / "in" / name)
    told = why_no_classes(open_source(tmp_path / "in"))
    assert (told is None) == (reason is None)
    assert reason is None or reason in (told or "")


def test_too_few_pictures_say_how_many_are_needed(tmp_path: Path) -> None:
    for seed in range(3):
        picture("cross", seed).save(tmp_path / f"{seed}.png")
    with pytest.raises(SourceError, match="3 images without classes are too few, expected 16"):
        prepare_folder(tmp_path, tmp_path / "out")


# Without what only learning needs: the next time takes seconds.
_AGAIN = """
import sys
photos, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
from hashlens.workflows.look import prepare_folder
found = prepare_folder(photos)
print(found.images, found.synced.report.added, found.synced.report.removed)
"""


def test_an_unlabelled_folder_is_fitted_once_and_then_synced(
    tmp_path: Path, weights_dir: Path
) -> None:
    photos = holiday(tmp_path / "photos")
    said: list[str] = []
    first = prepare_folder(photos, weights=weights_dir / WEIGHTS, say=said.append)
    assert (first.images, first.synced.report.added) == (24, 24)
    assert first.index == tmp_path / "photos.hashlens" / "index"
    told = " ".join(said)
    assert "named by dates" in told
    assert "codes of 8 bits from the images alone" in told
    assert dict(first.synced.listing.passed_over) == {".cr2": 1, ".db": 1}
    before = Encoder.load(first.model).fingerprint
    picture("circle", 77, side=96).save(photos / "2021" / "new.jpg")
    (photos / "2021" / "01" / "IMG_0000.jpg").unlink()
    blocked = ["lightning"] + ["torch"] * bool([*first.model.glob("twin-*.onnx")])
    again = subprocess.run(
        [sys.executable, "-c", _AGAIN, photos, *blocked], capture_output=True, text=True
    )
    assert again.stdout == "24 1 1\n", again.stderr
    again = prepare_folder(photos)
    assert (again.images, again.synced.report.unchanged) == (24, 24)
    assert Encoder.load(again.model).fingerprint == before
    with HashIndex.open(again.index) as index:
        assert {record.label for record in index} == {None}
    moved = tmp_path / "elsewhere"
    shutil.move(photos, moved)
    shutil.move(tmp_path / "photos.hashlens", tmp_path / "elsewhere.hashlens")
    there = prepare_folder(moved)
    assert (there.images, there.synced.report.added, there.synced.report.moved) == (24, 0, 24)


def looked_at(folder: str, out: Path) -> list[str | None]:
    """Labels of a folder's images, once it was looked at with a model that is there already."""
    shutil.copytree(GOLDEN, out / "model")
    with HashIndex.open(prepare_folder(folder, out).index) as index:
        return sorted(record.label or "" for record in index)


def test_what_a_message_tells_to_write_is_understood(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("training/cat/1", "training/dog/2", "testing/cat/3", "testing/dog/4"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture("cross", int(name[-1])).save(photos / f"{name}.png")
    with pytest.raises(SourceError, match=r"name one: (\S+#testing) or (\S+#training)") as caught:
        prepare_folder(photos)
    named = [word for word in str(caught.value).split() if "#" in word]
    assert looked_at(named[0], tmp_path / "a") == ["cat", "dog"]
    assert looked_at(f"{photos}#*", tmp_path / "b") == ["testing"] * 2 + ["training"] * 2


def test_a_list_next_to_the_pictures_has_the_labels(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        picture("cross", i).save(photos / f"{i}.png")
    (photos / "labels.csv").write_text("file,label\n0.png,cat\n1.png,dog\n2.png,dog\n")
    assert looked_at(str(photos), tmp_path / "out") == ["", "cat", "dog", "dog"]
    assert not prepare_folder(photos, tmp_path / "out").synced.listing.passed_over


@contextmanager
def looking(*words: object) -> Iterator[tuple[str, str]]:
    """``hashlens look`` as a process of its own: what it says, and its address."""
    command = [sys.executable, "-m", "hashlens", "look", *map(str, words), "--port", "0"]
    log = Path(str(words[0]) + ".log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if " at http" in line:
                break
        assert " at http" in said, said + log.read_text()
        yield said + log.read_text(), said.rsplit(" ", 1)[1].strip()
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_the_trip_of_a_shop_with_class_folders(tmp_path: Path) -> None:
    photos = write_class_folder(tmp_path / "shop", per_class=20)
    with looking(photos, "--no-browser") as (said, url):
        assert "learning 3 classes (circle, cross, stripe)" in said
        assert "holds 60 images: 60 added" in said
        found = httpx.post(f"{url}/v1/search", data={"id": 0, "k": 5}, timeout=60).json()
        assert {hit["label"] for hit in found["hits"]} == {"circle"}
        assert httpx.get(url).text.startswith("<!doctype html>")
    with looking(photos, "--no-browser") as (said, _):
        assert "learning" not in said
        assert "holds 60 images: nothing new" in said
    with pytest.raises(ModelError, match="with classes, which --no-labels would not use"):
        prepare_folder(photos, use_labels=False)


@pytest.mark.slow
def test_the_trip_of_holiday_pictures_whose_disk_moves(tmp_path: Path, weights_dir: Path) -> None:
    photos = holiday(tmp_path / "photos", count=40)
    picture("circle", 5, side=96).save(photos / "unsuffixed", "JPEG")
    weights = weights_dir / WEIGHTS
    with looking(photos, "--weights", weights) as (said, url):
        assert "named by dates" in said
        assert "holds 41 images: 41 added, passed over 2 (.cr2 1, .db 1)" in said
        shown = httpx.get(f"{url}/v1/images", timeout=60).json()["images"]
        assert {image["label"] for image in shown} == {None}
        assert all(image["name"] for image in shown)
    elsewhere = tmp_path / "new disk" / "photos"
    elsewhere.parent.mkdir()
    for name in ("photos", "photos.hashlens"):
        shutil.move(tmp_path / name, elsewhere.parent / name)
    with looking(elsewhere) as (said, url):
        assert "holds 41 images: 41 moved" in said
        picked = httpx.get(f"{url}/v1/images/0/thumbnail", timeout=60)
        assert picked.headers["content-type"].startswith("image/")
    found = CliRunner().invoke(app, ["search", f"{elsewhere}.hashlens/index", "0", "--json"])
    assert (found.exit_code, str(photos) in found.stdout) == (0, False), found.output
    assert str(elsewhere) in found.stdout
