"""Folders of images as sources."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from hashlens import SourceError, open_source
from hashlens.data.labels import require_labels
from image_builders import CLASSES, encoded, picture, write_class_folder


def write(root: Path, *names: str) -> Path:
    """Small pictures at these paths, each its own; other files where the suffix is no image's."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_picture = path.suffix.lower() in ("", ".jpg", ".png", ".jpg_large")
        path.write_bytes(encoded(picture("cross", seed, 8)) if is_picture else b"something else")
    return root


def in_each(*folders: str, files: int = 2) -> list[str]:
    return [f"{folder}/{i}.jpg" for folder in folders for i in range(files)]


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


@pytest.mark.parametrize(
    ("parts", "classes"),
    [
        (("Training", "Testing"), ("apple", "pear")),
        (("seg_train", "seg_test"), ("sea", "street")),
        (("train_set", "test_set"), ("a", "b", "c")),
        (("train2017", "val2017"), ("cat", "dog")),
        (("fold1", "fold2", "fold3"), ("cat", "dog")),
        (("trainset", "testset"), ("cat", "dog")),
        (("cv_1", "cv_2", "cv_3"), ("cat", "dog")),
        (("Validation Images", "Train Images"), ("cat", "dog")),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "dataset/"])
def test_parts_by_any_name_are_not_classes(
    tmp_path: Path, parts: tuple[str, ...], classes: tuple[str, ...], wrapper: str
) -> None:
    write(tmp_path, *in_each(*(f"{wrapper}{part}/{name}" for part in parts for name in classes)))
    base = f"{tmp_path}/{wrapper}".rstrip("/")
    with pytest.raises(SourceError, match="split into parts") as caught:
        open_source(tmp_path)
    assert f"{base}#{sorted(parts)[0]}" in str(caught.value)
    source = open_source(f"{base}#{parts[0]}")
    assert source.classes == tuple(sorted(classes))
    assert open_source(f"{base}#*").classes == tuple(sorted(parts))


def test_parts_without_classes_inside_are_parts_too(tmp_path: Path) -> None:
    write(tmp_path / "a", *in_each("train2017", "val2017", "test2017"))
    with pytest.raises(SourceError, match=r"#test2017 or .*#train2017 or .*#val2017"):
        open_source(tmp_path / "a")
    write(tmp_path / "b", *in_each("seg_train/sea", "seg_train/wood", "seg_pred"))
    with pytest.raises(SourceError, match="split into parts"):
        open_source(tmp_path / "b")


def test_the_same_names_in_each_folder_are_asked_about(tmp_path: Path) -> None:
    write(tmp_path, *in_each("shop A/boots", "shop A/hats", "shop B/boots", "shop B/hats"))
    with pytest.raises(SourceError, match=r"boots, hats are in each of shop A, shop B.*#\*"):
        open_source(tmp_path)
    assert open_source(f"{tmp_path}#*").classes == ("shop A", "shop B")
    assert open_source(f"{tmp_path}#shop B").classes == ("boots", "hats")


def test_classes_with_parts_or_views_inside_stay_classes(tmp_path: Path) -> None:
    write(tmp_path / "a", *in_each("cat/train", "cat/test", "dog/train", "dog/test"))
    assert open_source(tmp_path / "a").classes == ("cat", "dog")
    shoes = [f"shoe {i}/{view}" for i in range(3) for view in ("back", "front")]
    write(tmp_path / "b", *in_each(*shoes))
    assert open_source(tmp_path / "b").classes == ("shoe 0", "shoe 1", "shoe 2")
    write(tmp_path / "c", *in_each("test tube", "train station"))
    assert open_source(tmp_path / "c").classes == ("test tube", "train station")


@pytest.mark.parametrize("wrapper", ["dataset", "data/images", "train"])
def test_a_folder_around_the_classes_is_gone_through(tmp_path: Path, wrapper: str) -> None:
    names = in_each(f"{wrapper}/cat", f"{wrapper}/dog", files=6)
    source = open_source(write(tmp_path, *names, "cover.jpg"))
    assert source.classes == ("cat", "dog")
    assert source.label_name(len(source) - 1) == "dog"
    assert source.notes[0] == f"the classes are the sub-folders of {wrapper}"
    assert source.notes[1].startswith("1 images are outside")


def test_one_class_alone_is_no_wrapper(tmp_path: Path) -> None:
    assert open_source(write(tmp_path / "a", *in_each("cat"))).classes == ("cat",)
    assert open_source(write(tmp_path / "b", *in_each("cat", "cat/old", "cat/new"))).classes == (
        "cat",
    )
    with pytest.raises(SourceError, match=r"at least 2 classes, got 1 \('cat'\).*--unsupervised"):
        require_labels(open_source(tmp_path / "a"))


@pytest.mark.parametrize(
    "folders",
    [
        ["2023/01", "2023/02"],
        ["2022", "2023"],
        ["2023-05-01", "2023-05-02 Rome"],
        ["20230501", "20230502"],
        ["Photos/2022/12", "Photos/2023/01"],
        ["2023-05", "2023-06", "misc"],
        ["14.05.2023", "15.05.2023 Rome"],
        ["05-2023", "6-2023"],
        ["May 2023", "june_2023", "2. Oktober 2023"],
        ["2023年5月", "2023年12月3日"],
        ["DCIM/100APPLE", "DCIM/101APPLE"],
        ["100D5600", "101_PANA", "102CANON"],
        ["Google Photos/Photos from 2022", "Google Photos/Photos from 2023"],
    ],
)
def test_dates_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    source = open_source(write(tmp_path, *in_each(*folders)))
    assert (source.classes, len(source)) == ((), 2 * len(folders))
    assert "named by dates or cameras, so they are not taken for classes" in source.notes[0]
    assert source.notes[0].endswith(f"if they are, write {tmp_path}#*")
    assert open_source(f"{tmp_path}#*").classes
    with pytest.raises(SourceError, match=r"named by dates or cameras.*--unsupervised"):
        require_labels(source)


def test_names_that_only_hold_numbers_are_classes(tmp_path: Path) -> None:
    names = ["2000GT", "123ABC", "Ford Mustang 2012", "Mars 2012", "1066", "20235", "12345678"]
    assert open_source(write(tmp_path, *in_each(*names))).classes == tuple(sorted(names))


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "a/2.PNG", "b/scan", "b/x.jpg_large")
    write(tmp_path, *(f"raw/{i}.CR2" for i in range(3)), "a/t.txt", "clip.mov", "a/none.xyz")
    (tmp_path / "b" / "nothing").write_bytes(b"plain")
    (tmp_path / "a" / "1.jpg.bak").write_bytes((tmp_path / "a" / "1.jpg").read_bytes())
    tiff = encoded(picture("cross", 0, 8), "TIFF")
    (tmp_path / "raw" / "new.NEF").write_bytes(tiff)  # camera RAW looks like TIFF
    source = open_source(tmp_path)
    assert [Path(uri).name for uri in source.uris] == ["1.jpg", "2.PNG", "scan", "x.jpg_large"]
    assert source.passed_over == {
        ".bak": 1, ".cr2": 3, ".mov": 1, ".nef": 1, ".txt": 1, ".xyz": 1, "no suffix": 1
    }  # fmt: skip
    [note] = [note for note in source.notes if note.startswith("passed over 9 files")]
    assert ".cr2 3, .bak 1, .mov 1" in note
    assert "camera RAW is not read" in note
    for i in range(len(source)):
        assert source.load(i).size == (8, 8)


def test_system_folders_are_left_out_and_told(tmp_path: Path) -> None:
    system = ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", ".thumbnails"]
    write(tmp_path, *in_each("cat", "dog", "dog/@eaDir"), *in_each(*system))
    source = open_source(tmp_path)
    assert (source.classes, len(source)) == (("cat", "dog"), 4)
    [note] = source.notes
    assert note.startswith("left out 6 system folders: ")
    assert len(open_source(tmp_path / "@eaDir")) == 2  # named itself, it is read


@pytest.mark.parametrize(
    ("patterns", "left"),
    [(["*.png"], 4), (["dog"], 3), (["dog", "cat/1.*"], 2), (["cat/*"], 2), (["*g*"], 0)],
)
def test_patterns_exclude_files_and_folders(tmp_path: Path, patterns: list[str], left: int) -> None:
    write(tmp_path, *in_each("cat", "dog"), "cat/x.png")
    if not left:
        with pytest.raises(SourceError, match=r"no images found.*left out . files .*--exclude"):
            open_source(tmp_path, exclude=patterns)
        return
    source = open_source(tmp_path, exclude=patterns)
    assert len(source) == left
    assert "by --exclude" in source.notes[-1]


def test_one_class_in_two_forms_of_unicode_is_one_class(tmp_path: Path) -> None:
    composed, combined = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path, *in_each(f"{composed}", f"{combined}", "tea"))
    source = open_source(tmp_path)
    assert source.classes == (composed, "tea")
    assert np.bincount(source.labels).tolist() == [4, 2]
    assert sum(combined in uri for uri in source.uris) == 2  # paths stay as they are
    assert open_source(tmp_path, exclude=[composed]).classes == ("tea",)
