"""The catalogue of shards: ids map one to one, and a damaged file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlens import IndexStoreError
from hashlens.distributed.catalogue import (
    FILE_NAME,
    Catalogue,
    CatalogueFile,
    Shard,
    change_catalogue,
    is_sharded,
    read_catalogue,
    write_catalogue,
)


def _empty(n_shards: int) -> Catalogue:
    shards = tuple(Shard(f"shard-{i:04d}") for i in range(n_shards))
    return Catalogue(48, 16, "ab" * 32, "model", shards)


def _filled(adds: list[tuple[int, int]], n_shards: int = 3) -> Catalogue:
    catalogue = _empty(n_shards)
    for position, count in adds:
        catalogue = catalogue.with_added(position, catalogue.shards[position].count + count)
    return catalogue


ADDS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=12)


@given(ADDS)
def test_each_id_is_held_once_and_maps_back(adds: list[tuple[int, int]]) -> None:
    catalogue = _filled(adds)
    ids = np.arange(catalogue.next_id)
    assert catalogue.next_id == sum(count for _, count in adds)
    holders = np.array([shard.to_local(ids) >= 0 for shard in catalogue.shards])
    assert (holders.sum(axis=0) == 1).all()
    for position, shard in enumerate(catalogue.shards):
        local = shard.to_local(ids)
        held = local >= 0
        assert sorted(local[held]) == list(range(shard.count))
        assert (shard.to_global(local[held]) == ids[held]).all()
        assert all(catalogue.shard_of(int(i)) == position for i in ids[held])


@given(ADDS)
def test_ids_of_earlier_adds_never_change(adds: list[tuple[int, int]]) -> None:
    owner: list[tuple[int, int]] = []
    counts = [0, 0, 0]
    for position, count in adds:
        owner += [(position, counts[position] + i) for i in range(count)]
        counts[position] += count
    catalogue = _filled(adds)
    for image_id, (position, local) in enumerate(owner):
        assert catalogue.shards[position].to_global(np.array([local]))[0] == image_id


def test_an_add_that_is_known_changes_nothing() -> None:
    once = _filled([(0, 3), (1, 2)])
    assert once.with_added(0, 3) == once.with_added(0, 2) == once


def test_what_another_process_wrote_is_seen_and_kept(tmp_path: Path) -> None:
    write_catalogue(tmp_path, _filled([(0, 3)]))
    ours, theirs = CatalogueFile(tmp_path), CatalogueFile(tmp_path)
    assert ours.current() is ours.current()
    change_catalogue(tmp_path, lambda c: c.with_added(1, 2))
    assert theirs.current() == _filled([(0, 3), (1, 2)])
    change_catalogue(tmp_path, lambda c: c.with_added(0, 4))
    assert ours.current() == theirs.current() == _filled([(0, 3), (1, 2), (0, 1)])


def test_unknown_ids_map_to_minus_one() -> None:
    shard = _filled([(0, 4)]).shards[0]
    assert shard.to_global(np.array([-1, 3, 4])).tolist() == [-1, 3, -1]
    assert shard.to_local(np.array([-1, 3, 4])).tolist() == [-1, 3, -1]


def test_written_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    catalogue = _filled([(0, 3), (2, 1), (0, 2)])
    assert not is_sharded(tmp_path)
    write_catalogue(tmp_path, catalogue)
    assert is_sharded(tmp_path)
    assert read_catalogue(tmp_path) == catalogue


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not a catalogue"),
        ("[]", "format version 1, got None"),
        (json.dumps({"format_version": 9}), "format version 1, got 9"),
        (json.dumps({"format_version": 1, "shards": []}), "missing or of the wrong type"),
    ],
)
def test_a_damaged_catalogue_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(IndexStoreError, match=message) as error:
        read_catalogue(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(error.value)
