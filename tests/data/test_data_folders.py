"""Folders of images as sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hashlens import SourceError, open_source
from hashlens.data.labels import require_labels
from image_builders import CLASSES, picture, write_class_folder


def test_a_class_folder(class_folder: Path) -> None:
    source = open_source(str(class_folder))
    assert source.classes == CLASSES
    assert len(source) == 36
    assert np.bincount(source.labels).tolist() == [12, 12, 12]
    assert source.label_matrix is None
    assert source.uris[12] == str(class_folder / "cross" / "000.png")
    assert source.label_name(12) == "cross"
    assert np.array_equal(np.asarray(source.load(12)), np.asarray(picture("cross", 0)))
    assert source.notes == ()


def test_images_deep_in_a_class_belong_to_it(class_folder: Path) -> None:
    (class_folder / "cross" / "old" / "scans").mkdir(parents=True)
    picture("cross", 99).save(class_folder / "cross" / "old" / "scans" / "x.png")
    source = open_source(class_folder)
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [12, 13, 12]


def test_a_flat_folder_is_unlabelled(class_folder: Path) -> None:
    source = open_source(class_folder / "cross")
    assert (source.classes, len(source)) == ((), 12)
    assert (source.labels == -1).all()
    assert source.label_name(0) is None
    with pytest.raises(SourceError, match=r"none of the 12 images has one.*no sub-folders"):
        require_labels(source)


def test_a_folder_may_be_labelled_in_part(class_folder: Path) -> None:
    (class_folder / "empty").mkdir()
    for i in range(4):
        picture("cross", 50 + i).save(class_folder / f"new{i}.png")
    source = open_source(class_folder)
    assert source.classes == CLASSES
    assert (source.labels == -1).sum() == 4
    assert len(source.subset(source.labelled)) == 36
    assert "empty" in source.notes[0]
    assert "4 images are outside" in source.notes[1]
    require_labels(source)


def test_a_folder_that_is_split_is_not_taken_for_two_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_class_folder(tmp_path / "data" / part, 2)
    spec = str(tmp_path / "data")
    with pytest.raises(SourceError, match=f"name one: {spec}#test or {spec}#train"):
        open_source(spec)
    source = open_source(f"{spec}#train")
    assert (source.classes, len(source)) == (CLASSES, 6)
    with pytest.raises(SourceError, match=r"no part 'other'.*#test, #train"):
        open_source(f"{spec}#other")


def test_a_hash_in_a_folder_name_is_part_of_the_name(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "year#2024", 2)
    assert len(open_source(tmp_path / "year#2024")) == 6
