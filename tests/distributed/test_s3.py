"""Images and shards in S3, from a real server on the loopback interface."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hashlens import HashIndex, SourceError
from hashlens.distributed.encoding import EncodePart, list_names
from hashlens.distributed.sharded import ShardedIndex
from hashlens.distributed.snapshots import OpenShards, UnreadableShardError, read_manifest

from .sharded_folders import make_shards, part

pytest.importorskip("s3fs", reason="needs s3fs")
moto = pytest.importorskip("moto.server", reason="needs moto[server]")


class Server:
    """A server of S3 that can be stopped, and started again at the same place."""

    port = 0

    def start(self) -> None:
        self._running = moto.ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._running.start()
        _, self.port = self._running.get_host_and_port()

    def stop(self) -> None:
        self._running.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``s3fs.S3FileSystem`` of a server with an empty bucket, ``shop``."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("shop")
    yield system
    system.rm("shop", recursive=True)  # servers of one process share what they hold
    s3fs.S3FileSystem.clear_instance_cache()


def test_shards_in_a_bucket_are_copied_backed_up_and_restored(
    bucket: Any, images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path / "a", images, [0, 250, 600])
    index, shards = ShardedIndex.open(tmp_path / "a"), OpenShards("s3://shop/shop.idx")
    for expected in (600, 605):
        bucket.put(f"{tmp_path}/a/", "shop/shop.idx/", recursive=True)
        manifest = read_manifest("s3://shop/shop.idx")
        assert manifest.images == expected
        for shard in manifest.shards:
            assert len(shards.ask_one(shard.folder, HashIndex.ids)) == shard.images
            assert shards.ask_one(shard.folder, HashIndex.verify) == []
        index.add_encoded(**part(images, 0, 5))
    bucket.get("shop/shop.idx/", f"{tmp_path}/b/", recursive=True)
    assert len(ShardedIndex.open(tmp_path / "b")) == 605
    assert ShardedIndex.open(tmp_path / "b").verify() == []


def test_copied_shards_answer_while_the_store_is_away_and_follow_when_it_is_back(
    server: Server,
    bucket: Any,
    images: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(bucket), "retries", 1)
    make_shards(tmp_path / "a", images, [0, 250, 600])
    index, shards = ShardedIndex.open(tmp_path / "a"), OpenShards("s3://shop/shop.idx")
    before = index.manifest.shards
    bucket.put(f"{tmp_path}/a/", "shop/shop.idx/", recursive=True)
    for shard in before:
        assert shards.ask_one(shard.folder, len) == shard.images
    index.remove([1, (1 << 40) + 1])
    bucket.put(f"{tmp_path}/a/", "shop/shop.idx/", recursive=True)
    server.stop()
    with pytest.raises(SourceError, match="cannot be read"):
        read_manifest("s3://shop/shop.idx")
    for old, new in zip(before, index.manifest.shards, strict=True):
        with pytest.raises(UnreadableShardError, match="cannot be read"):
            shards.ask_one(new.folder, len)
        assert len(shards.ask_one(old.folder, HashIndex.ids)) == old.images
        assert shards.ask_one(old.folder, HashIndex.verify) == []
    server.start()
    for shard in read_manifest("s3://shop/shop.idx").shards:
        assert len(shards.ask_one(shard.folder, HashIndex.ids)) == shard.images


def test_images_of_a_bucket_are_listed_and_encoded(
    bucket: Any, model: Path, tmp_path: Path
) -> None:
    for i in range(40):
        file = io.BytesIO()
        Image.new("L", (8, 8), i).save(file, "PNG")
        bucket.pipe(f"shop/photos/cat/{i:02}.png", file.getvalue())
    plan = list_names(str(tmp_path / "new"), {"source": "s3://shop/photos", "shards": 1})
    assert plan["parts"] == {"shard-0000-000000": 40}
    worker = EncodePart(str(tmp_path / "new"), str(model), "cpu", 2**30, batch_size=16)
    done = {"item": ["shard-0000-000000"], "failed": [""]}
    assert worker({"item": ["shard-0000-000000"]}) == done


def test_a_missing_credential_is_said_as_the_store_says_it(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(SourceError, match="credentials") as raised:
        read_manifest("s3://shop/shop.idx")
    assert "install" not in str(raised.value)
