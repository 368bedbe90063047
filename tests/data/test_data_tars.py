"""Tar files as WebDataset writes them: one file or many, what they say, and damage."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_tables import PICTURES

from hashlens import ImageError, SourceError, open_source
from hashlens.data.opening import load_image
from image_builders import encoded, picture

DATA = [encoded(image) for image in PICTURES]
Member = tuple[str, bytes | str]


def _write(path: Path, *members: Member, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _shards(folder: Path) -> list[Path]:
    """Three files of three samples, with labels and metadata on both sides of the image."""
    paths = []
    for number in range(3):
        members: list[Member] = []
        for i in range(3 * number, 3 * number + 3):
            members += [
                (f"a/{i:06}.cls", f"{i % 3}\n"),
                (f"a/{i:06}.png", DATA[i]),
                (f"a/{i:06}.json", json.dumps({"price": i, "tags": ["x", str(i)]})),
                (f"a/{i:06}.txt", f"picture {i}"),
            ]
        paths.append(_write(folder / f"shard-{number:03}.tar", *members))
    return paths


def _same(source: Any) -> None:
    for i, expected in enumerate(PICTURES):
        for image in (source.load(i), load_image(source.uris[i])):
            assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("pattern", ["*.tar", "shard-{000..002}.tar"])
@pytest.mark.parametrize("place", ["here", "remote"])
def test_shards_are_one_source(tmp_path: Path, object_store: Any, pattern: str, place: str) -> None:
    folder = str(tmp_path)
    for path in _shards(tmp_path):
        object_store.pipe(f"/shop/{path.name}", path.read_bytes())
    if place == "remote":
        folder = "memory://shop"
    source = open_source(f"{folder}/{pattern}")
    assert source.classes == ("0", "1", "2")
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert source.notes == ()
    assert source.metadata(4) == {
        "key": "a/000004", "price": 4, "tags": ["x", "4"], "txt": "picture 4"
    }  # fmt: skip
    assert source.uris[3] == f"{folder}/shard-001.tar#0"
    _same(source)
    with ThreadPoolExecutor(8) as threads:
        rows = [*range(9)] * 20
        images = list(threads.map(load_image, [source.uris[row] for row in rows]))
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(PICTURES[row]))
    assert np.asarray(pickle.loads(pickle.dumps(source.store)).read(3)).tobytes() == DATA[3]


def test_one_file_and_long_names(tmp_path: Path) -> None:
    names = [f"./{'folder/' * 30}ü{i}.png" for i in range(9)]
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = _write(tmp_path / "x.tar", *zip(names, DATA, strict=True), format=style)
        source = open_source(path)
        assert (len(source), source.classes) == (9, ())
        assert source.metadata(8)["key"].endswith("folder/ü8")
        _same(source)


def test_labels_may_be_words_or_stand_in_the_json_or_the_text(tmp_path: Path) -> None:
    def samples(**texts: str) -> list[Member]:
        return [("1.png", DATA[0]), *((f"1.{kind}", text) for kind, text in texts.items())]

    words = open_source(_write(tmp_path / "a.tar", *samples(cls="cat")))
    assert words.label_name(0) == "cat"
    inside = _write(tmp_path / "b.tar", *samples(json='{"label": "dog", "price": 3}'))
    assert open_source(inside).label_name(0) == "dog"
    assert open_source(inside).metadata(0) == {"key": "1", "price": 3}
    caption = _write(tmp_path / "c.tar", *samples(txt="a red boot"))
    assert open_source(caption).label_name(0) is None
    assert open_source(caption, label_column="txt").label_name(0) == "a red boot"
    with pytest.raises(SourceError, match="expected a column 'kind', got key, txt"):
        open_source(caption, label_column="kind")


def test_a_sample_of_several_images_gives_its_first_or_the_kind_that_is_asked_for(
    tmp_path: Path,
) -> None:
    members = [
        (f"{i}.{side}.png", DATA[2 * i + k]) for i in range(3) for k, side in enumerate("ab")
    ]
    path = _write(tmp_path / "x.tar", *members)
    source = open_source(path)
    assert len(source) == 3
    assert "left out 3 further images of a sample; --image-column takes them" in source.notes
    assert np.array_equal(np.asarray(source.load(1)), np.asarray(PICTURES[2]))
    other = open_source(path, image_column="b.png")
    assert other.uris[0] == f"{path}#b.png#0"
    for image in (other.load(1), load_image(other.uris[1])):
        assert np.array_equal(np.asarray(image), np.asarray(PICTURES[3]))
    with pytest.raises(SourceError, match="no images found"):
        open_source(path, image_column="c.png")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "x.tar",
        *(("1.png", DATA[0]), ("1.json", "[1]"), ("1.cls", b"\xff\xfe")),
        *(("2.json", "{}"), ("2.txt", "alone"), ("3.mp3", "-"), ("README", "-")),
        *(("__MACOSX/4.png", DATA[0]), ("._5.png", "-"), ("old/6.png", DATA[1])),
        ("7.png", DATA[2]),
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("8.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = open_source(path, exclude=["old"])
    assert [source.metadata(i)["key"] for i in range(len(source))] == ["1", "7"]
    said = "\n".join(source.notes)
    for note in (
        "left out 2 members of text that cannot be read",
        "left out 1 samples without an image",
        "left out 1 links",
        "left out 1 files and folders by --exclude",
        "system folders: __MACOSX",
    ):
        assert note in said
    assert source.passed_over[".mp3"] == source.passed_over["no suffix"] == 1


@pytest.mark.parametrize("damage", ["cut", "header", "garbage", "empty", "missing"])
def test_a_damaged_file_is_told_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    _, bad, _ = _shards(tmp_path)
    with tarfile.open(bad) as tar:
        at = tar.getmember("a/000004.png")
    content = bad.read_bytes()
    if damage == "cut":
        content = content[: at.offset_data + 20]
    elif damage == "header":
        content = content[: at.offset] + b"\xff" * 512 + content[at.offset + 512 :]
    elif damage == "garbage":
        content = b"no tar file" * 1000
    bad.write_bytes(b"" if damage == "empty" else content)
    if damage == "missing":
        bad.unlink()
    source = open_source(f"{tmp_path}/shard-{{000..002}}.tar")
    (note,) = (note for note in source.notes if "not whole" in note)
    assert note.startswith(f"1 of 3 tar files are not whole: {bad}")
    assert "\n" not in note
    keys = [source.metadata(i)["key"] for i in range(len(source))]
    kept = ["a/000003"] if damage in ("cut", "header") else []
    seen = [f"a/{i:06}" for i in range(9) if i // 3 != 1]
    assert [key for key in keys if key != "a/000004"] == seen[:3] + kept + seen[3:]
    for uri, key in zip(source.uris, keys, strict=True):
        if key == "a/000004":  # its header is there
            with pytest.raises(ImageError, match="the tar file ends within it"):
                load_image(uri)
        else:
            load_image(uri)
    with pytest.raises(SourceError, match=bad.name):
        open_source(f"{tmp_path}/shard-{{000..002}}.tar", strict=True)


def test_names_that_lead_nowhere_are_unreadable_images(tmp_path: Path) -> None:
    path = _shards(tmp_path)[0]
    for name, reason in (
        (f"{path}#512", "no sample with an image begins at this byte"),
        (f"{path}#{10**12}", "no sample with an image begins at this byte"),
        (f"{path}#jpg#0", "no sample with an image begins at this byte"),
        (f"{tmp_path}/none.tar#0", "no such file"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(name)
        assert "\n" not in str(caught.value)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.tar", ("1.png", DATA[0]))
    assert load_image(f"{path}#0").size == (8, 8)
    _write(path, ("1.png", encoded(picture("stripe", 77, 16))))
    assert load_image(f"{path}#0").size == (16, 16)


def test_any_bytes_are_a_source_or_a_source_error(tmp_path: Path) -> None:
    whole = np.frombuffer(_shards(tmp_path)[0].read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = whole.copy()
        broken[rng.integers(0, len(broken), 40)] = rng.integers(0, 256, 40)
        (tmp_path / "x.tar").write_bytes(broken.tobytes())
        try:
            source = open_source(tmp_path / "x.tar")
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        for uri in source.uris:
            try:
                load_image(uri)
            except ImageError as error:
                assert str(error).startswith(uri)  # noqa: PT017
