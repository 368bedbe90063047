"""A folder that is replaced while it is open: nothing of one index reaches the other."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_encoder import PixelEncoder, save_pictures

from hashlens import HashIndex, IndexStoreError, SearchOptions

BITS, WIDTH = 64, 5


def _encoded(count: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (count, BITS // 8), dtype=np.uint8)
    return codes, rng.standard_normal((count, WIDTH)).astype(np.float32)


def _make(path: Path, count: int, seed: int, name: str) -> None:
    with HashIndex.create(path, bits=BITS, feature_dim=WIDTH, fingerprint="f00d") as index:
        index.add_encoded(*_encoded(count, seed), [f"{name}/{i}.jpg" for i in range(count)])
        index.add_encoded(*_encoded(4, seed + 1), [f"{name}/more{i}.jpg" for i in range(4)])
        index.remove([1])


def _by_renaming(path: Path, other: Path) -> None:
    path.rename(path.with_name("old.idx"))
    other.rename(path)


def _by_deleting(path: Path, other: Path) -> None:
    shutil.rmtree(path)
    other.rename(path)


SWAPS = [_by_renaming, _by_deleting]
CHANGES: dict[str, Callable[[HashIndex], Any]] = {
    "add": lambda index: index.add_encoded(*_encoded(3, 9), ["a", "b", "c"]),
    "remove": lambda index: index.remove([0]),
    "update": lambda index: index.update(0, label="x"),
    "replace": lambda index: index.replace_encoded([0], *_encoded(1, 9)),
    "compact": lambda index: index.compact(),
}


def _state(path: Path) -> Any:
    with HashIndex.open(path, read_only=True) as index:
        assert index.verify() == []
        ids, codes, features = index.encoded()
        return index.records(), ids.tolist(), codes.tobytes(), features.tobytes()


@pytest.fixture(params=[3, 30, 300])  # the other one: smaller, of the same size, larger
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    _make(tmp_path / "a.idx", 30, 1, "a")
    _make(tmp_path / "b.idx", request.param, 5, "b")
    return tmp_path / "a.idx", tmp_path / "b.idx"


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_never_reaches_an_index_that_came_later(
    pair: tuple[Path, Path], swap: Callable[[Path, Path], None], change: str
) -> None:
    path, other = pair
    index = HashIndex.open(path)
    index.update(2, label="open")  # a connection and a snapshot are there
    wanted = _state(other)
    swap(path, other)
    with pytest.raises(IndexStoreError, match=r"was replaced by another index.*open it again"):
        CHANGES[change](index)
    assert _state(path) == wanted
    if (old := path.with_name("old.idx")).exists():
        assert len(_state(old)[1]) == 33
    assert index.accept_replacement()
    CHANGES[change](index)
    assert not index.accept_replacement()
    index.close()
    assert _state(path) != wanted or change == "compact"


@pytest.mark.parametrize("swap", SWAPS)
def test_searching_goes_on_with_the_new_index(
    pair: tuple[Path, Path], swap: Callable[[Path, Path], None]
) -> None:
    path, other = pair
    with HashIndex.open(other, read_only=True) as new:
        wanted = new.search_hits(*_encoded(6, 5), SearchOptions(5))
        size = len(new)
    with HashIndex.open(path) as index:
        assert {hit.uri[0] for hit in index.search_hits(*_encoded(1, 1), SearchOptions(5))[0]} == {
            "a"
        }
        swap(path, other)
        assert index.search_hits(*_encoded(6, 5), SearchOptions(5)) == wanted
        assert len(index) == size


def test_closing_the_old_index_leaves_the_new_ones_log_alone(pair: tuple[Path, Path]) -> None:
    path, other = pair
    old = HashIndex.open(path)
    old.update(2, label="open")
    writer = HashIndex.open(other)
    writer.update(2, label="in the log alone")
    _by_renaming(path, other)
    old.close()
    copy = shutil.copytree(path, path.with_name("copy.idx"))
    with HashIndex.open(copy) as index:
        assert index.get(2).label == "in the log alone"
        assert index.verify() == []
    writer.close()


def test_another_model_at_the_path_is_refused(tmp_path: Path) -> None:
    encoder, other = PixelEncoder(), PixelEncoder(seed=3)
    pictures = save_pictures(tmp_path / "pictures", 4)
    with HashIndex.create(tmp_path / "a.idx", encoder) as index:
        index.add(pictures)
        with HashIndex.create(tmp_path / "b.idx", other) as second:
            second.add(pictures)
        _by_renaming(tmp_path / "a.idx", tmp_path / "b.idx")
        with pytest.raises(IndexStoreError, match="made with model"):
            index.search(pictures[0])


def test_a_long_addition_stops_at_the_swap(tmp_path: Path) -> None:
    encoder = PixelEncoder()
    pictures = save_pictures(tmp_path / "pictures", 4)
    path, other = tmp_path / "a.idx", tmp_path / "b.idx"
    HashIndex.create(path, encoder).close()
    with HashIndex.create(other, encoder) as index:
        index.add(pictures[:2])
    wanted = _state(other)

    def given() -> Iterator[Path]:
        yield from pictures * 300  # more than one commit
        _by_renaming(path, other)
        yield from pictures

    with HashIndex.open(path, encoder) as index, pytest.raises(IndexStoreError, match="replaced"):
        index.add(given())
    assert _state(path) == wanted
    assert len(_state(tmp_path / "old.idx")[1]) > 1000


@pytest.mark.parametrize("delay_ms", range(0, 30, 3))
def test_a_swap_at_any_moment_of_writing(tmp_path: Path, delay_ms: int) -> None:
    path, other = tmp_path / "a.idx", tmp_path / "b.idx"
    _make(path, 30, 1, "a")
    _make(other, 30, 5, "b")

    def swap() -> None:
        time.sleep(delay_ms / 1000)
        _by_renaming(path, other)

    swapping = threading.Thread(target=swap)
    acknowledged = 0

    def add_without_end() -> None:
        nonlocal acknowledged
        while True:
            index.add_encoded(*_encoded(2, acknowledged), ["new/1.jpg", "new/2.jpg"])
            acknowledged += 2

    index = HashIndex.open(path)
    swapping.start()
    # Another index, or nothing for a moment, stands at the path.
    with pytest.raises(IndexStoreError, match=r"replaced|not an index|no such file"):
        add_without_end()
    swapping.join()
    index.close()
    assert len(_state(tmp_path / "old.idx")[1]) == 33 + acknowledged
    assert len(_state(path)[1]) == 33
