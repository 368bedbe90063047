"""``hashlens look``: a stranger's folder, from the first command to the page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hashlens import Encoder, HashIndex, open_source
from hashlens.errors import ModelError, SourceError
from hashlens.training.folder import open_run
from hashlens.training.recipes import configure
from hashlens.workflows.look import prepare_folder, why_no_classes
from image_builders import holiday, picture, write_class_folder

WEIGHTS = "mobilenetv2_100_imagenet.safetensors"
GOLDEN = Path(__file__).parents[1] / "data" / "models" / "format-3"  # of the classes cat, dog, eel


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


@pytest.mark.slow
def test_what_was_interrupted_with_other_pictures_begins_again(tmp_path: Path) -> None:
    photos, out = write_class_folder(tmp_path / "photos", per_class=5), tmp_path / "out"
    before = open_source(photos)
    config, _ = configure("small", {}, before)
    open_run(out / "model", before, config, resume=False, overwrite=False)
    picture("cross", 99).save(photos / "cross" / "new.png")
    assert prepare_folder(photos, out).images == 16
    assert Encoder.load(out / "model").classes == before.classes


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
    with pytest.raises(ModelError, match="with classes, which --no-labels would not use"):
        prepare_folder(photos, tmp_path / "b", use_labels=False)


def test_a_list_next_to_the_pictures_has_the_labels(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        picture("cross", i).save(photos / f"{i}.png")
    (photos / "labels.csv").write_text("file,label\n0.png,cat\n1.png,dog\n2.png,dog\n")
    assert looked_at(str(photos), tmp_path / "out") == ["", "cat", "dog", "dog"]
    assert not prepare_folder(photos, tmp_path / "out").synced.listing.passed_over
