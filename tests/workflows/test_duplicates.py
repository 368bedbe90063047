"""Duplicates among images that share a code: the pictures decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hashlens import HashIndex
from hashlens.workflows.duplicates import find_duplicates, write_duplicates


def photograph(seed: int) -> Image.Image:
    """Smooth random colours, as unlike another's as two photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((240, 180), Image.Resampling.BICUBIC)
    return picture.filter(ImageFilter.GaussianBlur(2))


@pytest.fixture
def index(tmp_path: Path) -> HashIndex:
    """Pictures of one class, all with the same code."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(8):
        photograph(seed).save(folder / f"{seed}.png")
    photograph(3).resize((120, 90)).save(folder / "smaller.jpg", quality=60)
    photograph(3).crop((4, 4, 236, 176)).save(folder / "cropped.png")
    (folder / "copy.png").write_bytes((folder / "5.png").read_bytes())
    (folder / "gone.png").write_bytes(b"no picture")
    paths = sorted(folder.iterdir())
    index = HashIndex.create(tmp_path / "x.idx", bits=48, feature_dim=0)
    codes = np.zeros((len(paths), 6), np.uint8)
    index.add_encoded(codes, None, [str(path) for path in paths])
    return index


def test_pictures_decide_where_codes_are_equal(index: HashIndex, tmp_path: Path) -> None:
    found = find_duplicates(index, 0)
    names = [{Path(record.uri).name for record in group} for group in found.near]
    assert sorted(map(sorted, names)) == [
        ["3.png", "cropped.png", "smaller.jpg"],
        ["5.png", "copy.png"],  # the codes were given, so no digest of the files is known
    ]
    assert found.pairs == 12 * 11 // 2
    assert (found.unread, found.by_codes, found.extra) == (1, False, 3)
    for group in found.near:
        sizes = [Path(record.uri).stat().st_size for record in group]
        assert sizes == sorted(sizes, reverse=True)
    page = write_duplicates(found, tmp_path / "out").read_text()
    assert "smaller.jpg" in page
    assert "3 images could go" in page
    assert Image.open(tmp_path / "out" / "near.png").width > 200


def test_without_pictures_codes_decide(tmp_path: Path) -> None:
    index = HashIndex.create(tmp_path / "x.idx", bits=48, feature_dim=0)
    codes = np.array([[0] * 6, [0] * 6, [255] * 6, [1] + [0] * 5], np.uint8)
    index.add_encoded(codes, None, ["vectors.npy#0", "vectors.npy#1", "nowhere.jpg", "v.npy#2"])
    found = find_duplicates(index, 1)
    assert [[record.id for record in group] for group in found.near] == [[0, 1, 3]]
    assert (found.unread, found.by_codes) == (3, True)
    assert find_duplicates(index, 0).near[0][0].id == 0


def test_many_pictures_of_one_code_are_compared_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashlens.workflows.duplicates._BLOCK", 3)
    for seed in range(10):
        photograph(seed % 5).save(tmp_path / f"{seed}.png")
    index = HashIndex.create(tmp_path / "x.idx", bits=48, feature_dim=0)
    uris = [str(tmp_path / f"{seed}.png") for seed in range(10)]
    index.add_encoded(np.zeros((10, 6), np.uint8), None, uris)
    groups = [[record.id for record in group] for group in find_duplicates(index, 0).near]
    assert sorted(groups) == [[seed, seed + 5] for seed in range(5)]
