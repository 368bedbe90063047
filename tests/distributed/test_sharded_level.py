"""A sharded index has the methods of one index, with the same answers and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens import HashIndex, IndexStoreError, InvalidInputError
from hashlens.distributed.sharded import ShardedIndex
from hashlens.files import file_state
from hashlens.types import Codes, EncodedBatch, Features, ImageInput

from .sharded_folders import BITS, DIM, make_shards


class SizeEncoder:
    """Codes and features that depend on the size of a file alone."""

    bits, feature_dim, fingerprint = BITS, DIM, ""

    def encode(self, images: Sequence[ImageInput]) -> tuple[Codes, Features]:
        sizes = [len(image) if isinstance(image, bytes) else _size(image) for image in images]
        codes = np.array([[size % 256, 0] for size in sizes], np.uint8).reshape(-1, 2)
        return codes, np.repeat(np.array(sizes, np.float32)[:, None], DIM, axis=1)

    def encode_batches(
        self, images: Any, *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        listed = list(images)
        if listed:
            files = tuple(map(file_state, listed))
            yield EncodedBatch(np.arange(len(listed)), *self.encode(listed), None, (), files)


def _size(image: Any) -> int:
    return Path(image).stat().st_size


@pytest.fixture
def sharded(cluster: Any, images: dict[str, Any], tmp_path: Path) -> Iterator[ShardedIndex]:
    make_shards(tmp_path / "sharded", images, [0, 250, 260, 600])
    with ShardedIndex.open(tmp_path / "sharded", SizeEncoder(), deadline=60.0) as index:
        yield index


@pytest.fixture
def plain(images: dict[str, Any], tmp_path: Path) -> Iterator[HashIndex]:
    path = tmp_path / "plain"
    with HashIndex.create(path, SizeEncoder()) as index:
        index.add_encoded(**images)
        yield index


def test_it_is_read_and_changed_as_one_index_is(
    sharded: ShardedIndex, plain: HashIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("new.jpg").write_bytes(b"x" * 77)
    for index in (sharded, plain):
        assert index.add(["new.jpg", b"in memory"], ["new", None]).ids.tolist() == [600, 601]
        index.update(3, label="boots", metadata={"price": 20})
        index.update(255, image="new.jpg")
        index.replace_encoded([599, 1], np.array([[7, 7], [8, 8]], np.uint8), np.ones((2, DIM)))
        index.remove([0, 259, 300])
        assert index.compact() > 0
        assert index.verify() == []
    assert sharded[600].uri == str(tmp_path / "new.jpg")
    assert sharded.records() == plain.records() == list(sharded)
    assert sharded.file_digest(600) == plain.file_digest(600) is not None
    for got, expected in zip(sharded.encoded(), plain.encoded(), strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(sharded.encoded([599, 1]), plain.encoded([599, 1]), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert sharded.to_arrow().equals(plain.to_arrow())
    assert sharded.duplicates(1) == plain.duplicates(1)
    assert sharded.search([600, "new.jpg"], k=7) == plain.search([600, "new.jpg"], k=7)
    assert 601 in sharded
    assert 300 not in sharded
    assert "602" not in repr(sharded)
    assert "599 images, 16 bits, features of 6 values" in repr(sharded)


def test_what_is_no_id_is_refused(sharded: ShardedIndex) -> None:
    for value in (True, "3", [3]):
        with pytest.raises(InvalidInputError, match="expected one whole number"):
            sharded.get(value)  # type: ignore[arg-type]
    for ask in (sharded.remove, sharded.records, sharded.encoded):
        with pytest.raises(InvalidInputError, match="ids: expected whole numbers"):
            ask([True])
    with pytest.raises(InvalidInputError, match="query: expected an image"):
        sharded.search(True)
    with pytest.raises(InvalidInputError, match="labels: expected 2, one per image, got 1"):
        sharded.add(["a.jpg", "b.jpg"], labels=["x"])


def test_what_shards_cannot_do_says_what_to_do(sharded: ShardedIndex, tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="exported shard by shard"):
        sharded.export(tmp_path / "x.faiss", "faiss")
    with pytest.raises(IndexStoreError, match="hashlens index add"):
        sharded.sync(tmp_path, [])
