"""A shard on its own, without Ray: what it answers while it is being changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hashlens import HashIndex, SearchOptions
from hashlens.distributed.catalogue import (
    Catalogue,
    IdRange,
    Shard,
    change_catalogue,
    write_catalogue,
)
from hashlens.distributed.cluster import ShardServer
from hashlens.types import Mode

KNOWN, NEW = 12, 5


@pytest.fixture
def server(tmp_path: Path) -> ShardServer:
    """Ids 100 to 111 are known; five nearer images were committed and are not known yet."""
    with HashIndex.create(tmp_path / "shard-0000", bits=8, feature_dim=2) as index:
        for n, code in ((KNOWN, 1), (NEW, 0)):
            codes = np.full((n, 1), code, np.uint8)
            features = np.full((n, 2), code, np.float32)
            index.add_encoded(codes, features, [f"/{code}/{i}.jpg" for i in range(n)])
    shards = (Shard("shard-0000", (IdRange(100, 0, KNOWN),)),)
    write_catalogue(tmp_path, Catalogue(8, 2, "", None, shards))
    return ShardServer(str(tmp_path), 0)


@pytest.mark.parametrize("mode", ["bcs", "hds", "es"])
def test_images_without_an_id_take_nobodys_place(
    server: ShardServer, tmp_path: Path, mode: Mode
) -> None:
    query = np.zeros((1, 1), np.uint8), np.zeros((1, 2), np.float32)

    def found() -> list[int]:
        result = server.search(*query, SearchOptions(4, mode=mode))
        return [i for i in result.ids[0].tolist() if i >= 0][:4]

    assert found() == [100, 101, 102, 103]
    change_catalogue(tmp_path, lambda c: c.with_added(0, KNOWN + NEW))
    assert found() == [112, 113, 114, 115]


def test_an_image_removed_meanwhile_is_passed_over(server: ShardServer) -> None:
    server.remove([101])
    codes, records = server.described([100, 101, 102])
    assert [record.id for record in records] == [100, 102]
    assert codes.tolist() == [[1], [1]]
