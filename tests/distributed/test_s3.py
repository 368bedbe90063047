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
from hashlens.distributed.snapshots import OpenShards, read_manifest

from .sharded_folders import make_shards, part

pytest.importorskip("s3fs", reason="needs s3fs")
moto = pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``s3fs.S3FileSystem`` of a server with an empty bucket, ``shop``."""
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("shop")
    yield system
    system.rm("shop", recursive=True)  # servers of one process share what they hold
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


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
    assert worker({"item": ["shard-0000-000000"]}) == {"item": ["shard-0000-000000"]}


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
