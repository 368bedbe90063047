"""What a label is judged by: files of equal content, and the nearest other images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlens.data.opening import open_source
from hashlens.workflows.labels import nearest_others, same_files
from image_builders import write_class_folder


def test_groups_of_equal_files(tmp_path: Path) -> None:
    folder = write_class_folder(tmp_path / "photos", 4)
    shutil.copy(folder / "stripe" / "002.png", folder / "circle" / "copy.png")
    shutil.copy(folder / "stripe" / "002.png", folder / "cross" / "copy.png")
    (folder / "cross" / "gone.png").symlink_to("nowhere")
    source = open_source(folder)
    (group,) = same_files(source)
    found = {str(Path(source.uris[position]).relative_to(folder)) for position in group}
    assert found == {"circle/copy.png", "cross/copy.png", "stripe/002.png"}


def test_digits_are_all_different() -> None:
    assert same_files(open_source("digits#test")) == []


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_neighbours_are_those_of_a_plain_loop(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, 2), np.uint8)  # few values: many ties
    features = rng.integers(-1, 2, (n, 3)).astype(np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, 1e-20)
    distances = [
        np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2),
        np.linalg.norm(directions[:, None] - directions[None], axis=2),
    ]
    by_feature, by_code = nearest_others(features, codes, k)
    assert by_code.shape == by_feature.shape == (n, min(k, n - 1))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        expected = sorted(others, key=lambda j: (distances[0][i][j], j))[:k]
        assert by_code[i].tolist() == expected
        found = by_feature[i].tolist()
        assert i not in found
        nearest = sorted(distances[1][i][j] for j in others)[:k]
        assert [distances[1][i][j] for j in found] == pytest.approx(nearest, abs=1e-4)


def test_equal_angles_stand_in_the_order_of_positions() -> None:
    features = np.array([[1, 0], [0, 1], [2, 0], [4, 0], [1, 0], [0, 3]], np.float32)
    for k in range(1, 6):
        found = nearest_others(np.repeat(features, 3, axis=0), np.zeros((18, 1), np.uint8), k)[0]
        assert found[0].tolist() == [1, 2, 6, 7, 8][:k]
        assert found[3].tolist() == [4, 5, 15, 16, 17][:k]
