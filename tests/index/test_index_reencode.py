"""An index with the codes of another model, exchanged at the end."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pixel_encoder import PixelEncoder, save_pictures

from hashlens import Encoder, Hasher, HashIndex, IndexStoreError
from hashlens.workflows.reencode import reencode

OLD, NEW = PixelEncoder(48), PixelEncoder(64, seed=1)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [str(path) for path in save_pictures(tmp_path / "pictures", 60)]


@pytest.fixture
def path(files: list[str], tmp_path: Path) -> Path:
    """41 images of 39 files."""
    path = tmp_path / "x.idx"
    with HashIndex.create(path, OLD, model=tmp_path / "old") as made:
        metadata = [{"row": row} for row in range(40)]
        made.add(files[:40], [f"label {row % 3}" for row in range(40)], metadata)
        made.add(files[:2])  # two images are there twice
        made.remove([5])
    return path


def test_images_labels_and_metadata_stay(path: Path, files: list[str], tmp_path: Path) -> None:
    model = tmp_path / "new"
    with HashIndex.open(path, read_only=True) as old:
        expected = [(r.uri, r.label, dict(r.metadata)) for r in old.records()]
    seen: list[tuple[int, int]] = []
    done = reencode(path, NEW, model, progress=lambda *at: seen.append(at))
    assert (done.images, done.skipped, done.new) == (41, (), path)
    assert seen[-1] == (41, 41)
    with HashIndex.open(path, NEW) as made:
        assert made.verify() == []
        assert [(r.uri, r.label, dict(r.metadata)) for r in made.records()] == expected
        assert made.model == str(model)
        codes = NEW.encode(files[:1])[0]
        assert bytes(made.encoded([0])[1]) == bytes(codes)
    assert done.before is not None
    with HashIndex.open(done.before, read_only=True) as old:
        assert (len(old), old.bits) == (41, 48)
    with pytest.raises(IndexStoreError, match="is there already, from the last time"):
        reencode(path, NEW, model)


def test_pictures_that_a_service_was_given_come_along(
    path: Path, files: list[str], tmp_path: Path
) -> None:
    uploads = path / "uploads"
    uploads.mkdir(mode=0o700)
    (uploads / "given.png").write_bytes(Path(files[50]).read_bytes())
    (uploads / ".new-half").write_bytes(b"half")
    with HashIndex.open(path, OLD) as old:
        old.add([uploads / "given.png"])
    assert reencode(path, NEW, tmp_path / "new").skipped == ()
    assert [each.name for each in uploads.iterdir()] == ["given.png"]  # what is not whole stays
    assert uploads.stat().st_mode & 0o777 == 0o700
    with HashIndex.open(path, NEW) as made:
        assert made.search(uploads / "given.png", k=1)[0].uri == str(uploads / "given.png")


def test_what_cannot_be_read_stays_in_the_old_index(
    path: Path, files: list[str], tmp_path: Path
) -> None:
    with HashIndex.open(path, OLD) as old:
        old.add_encoded(np.zeros((1, 6), np.uint8), np.zeros((1, 36)), ["/nowhere/x.png"])
    done = reencode(path, NEW, tmp_path / "new")
    assert (done.images, len(done.skipped), done.before) == (41, 1, None)
    with HashIndex.open(path) as old:
        assert (len(old), old.bits) == (42, 48)
        old.remove([record.id for record in old if record.uri.startswith("/nowhere")])
    again = reencode(path, NEW, tmp_path / "new")
    assert again.images == 41
    assert HashIndex.open(path).bits == 64


def test_changes_meanwhile_are_followed_and_a_stopped_run_goes_on(
    path: Path, files: list[str], tmp_path: Path
) -> None:
    model = tmp_path / "new"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reencode(path, NEW, model, progress=stop)
    assert HashIndex.open(path).bits == 48
    changed = threading.Event()

    def change(done: int, total: int) -> None:
        if not changed.is_set():
            changed.set()
            with HashIndex.open(path, OLD) as old:
                old.remove([0])
                old.add(files[51:54])

    with HashIndex.open(path, OLD) as old:
        old.add(files[50:51])
    done = reencode(path, NEW, model, progress=change)
    assert changed.is_set()
    assert done.images == 41 + 1 - 1 + 3
    with HashIndex.open(path) as made:
        assert set(files[50:54]) < set(made.uris())
        assert not made.uris().keys() & set(files[54:])


def test_a_run_stopped_while_exchanging_ends_it(
    path: Path, files: list[str], tmp_path: Path
) -> None:
    model = tmp_path / "new"
    done = reencode(path, NEW, model)
    path.rename(path.with_name("x.idx.new"))
    with pytest.raises(IndexStoreError, match="is there already"):
        reencode(path, NEW, model)
    assert done.before == path.with_name("x.idx.before")
    assert HashIndex.open(path).bits == 64


def test_vectors_are_not_in_an_index(path: Path) -> None:
    made = np.random.default_rng(0).standard_normal((40, 8), np.float32)
    Hasher(bits=16, method="LSH").fit(made).save(path.with_name("hasher"))
    with pytest.raises(IndexStoreError, match="holds vectors, which an index does not keep"):
        reencode(path, Encoder.load(path.with_name("hasher")), path)
