"""Encoding on Ray makes the index that one process would make, whatever is killed meanwhile."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from hashlens import (
    Encoder,
    HashIndex,
    HashlensError,
    IndexStoreError,
    InvalidInputError,
    SourceError,
)
from hashlens.distributed.encoding import (
    MOST_IMAGES,
    WORK,
    EncodePart,
    create_sharded,
    images_at_once,
    list_names,
)
from hashlens.distributed.sharded import ShardedIndex
from hashlens.distributed.snapshots import read_manifest

SOURCE, SHARDS = "digits#test", 3
LATE = 240.0


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> HashIndex:
    """The same images, encoded and indexed in this process."""
    from hashlens import open_source

    source = open_source(SOURCE)
    index = HashIndex.create(tmp_path_factory.mktemp("expected") / "index", Encoder.load(model))
    index.add(list(source.uris), [source.label_name(i) for i in range(len(source))])
    return index


def _same(folder: Path, expected: HashIndex) -> None:
    index = ShardedIndex.open(folder)
    _, codes, features = index.encoded()
    _, wanted, floats = expected.encoded()
    # sums are rounded in another order in batches of another size
    assert np.unpackbits(codes ^ wanted).mean() < 1e-3
    np.testing.assert_allclose(features, floats, rtol=2e-3, atol=2e-3)
    assert [record[1:] for record in index] == [record[1:] for record in expected]
    assert index.verify() == []


def test_it_makes_the_same_index_while_a_worker_is_killed(
    cluster: Any, model: Path, expected: HashIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []

    def kill_an_encoder() -> None:
        limit = time.monotonic() + LATE
        while not killed and time.monotonic() < limit:
            for process in psutil.process_iter(["cmdline"]):
                if any("MapWorker" in word for word in process.info["cmdline"] or ()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            time.sleep(0.02)

    thread = threading.Thread(target=kill_an_encoder)
    thread.start()
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "index"
    skipped = create_sharded(
        *(folder, model, SOURCE),
        shards=SHARDS,
        workers=1,
        batch_size=16,
        progress=lambda done, total: seen.append((done, total)),
    )
    thread.join()
    assert killed
    assert seen[0] == (0, 359)
    assert seen[-1] == (359, 359)
    assert not skipped
    assert [shard.images for shard in read_manifest(folder).shards] == [119, 120, 120]
    _same(folder, expected)
    kept = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert kept == {"shards", "shard-0000", "shard-0001", "shard-0002"}
    with pytest.raises(IndexStoreError, match="holds a sharded index already"):
        create_sharded(folder, model, SOURCE, shards=SHARDS)


@pytest.mark.slow
def test_storage_that_goes_while_it_encodes_is_one_line_and_the_next_run_goes_on(
    cluster: Any, model: Path, expected: HashIndex, tmp_path: Path
) -> None:
    import ray

    folder, away = tmp_path / "index", tmp_path / "away"

    def lose(done: int, _: int) -> None:
        if done and not away.exists():
            folder.rename(away)

    def encode(**options: Any) -> None:
        create_sharded(folder, model, SOURCE, shards=SHARDS, workers=1, batch_size=16, **options)

    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(HashlensError, match="run the command again") as raised:
            thread.submit(encode, progress=lose).result(timeout=LATE)
        assert "\n" not in str(raised.value)
        assert not folder.exists()  # nothing was made where the storage was
        assert [node["Alive"] for node in ray.nodes()] == [True, True]
        away.rename(folder)
        kept = {path.name for path in folder.glob(f"{WORK}/*.npz")}
        assert kept
        thread.submit(encode).result(timeout=LATE)
    _same(folder, expected)


@pytest.mark.slow
def test_an_error_of_a_task_reaches_the_user_as_one_line(
    cluster: Any, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_sharded(folder, model, SOURCE, shards=SHARDS, progress=stop)
    (folder / WORK / "shard-0001-000000.jsonl").write_text("{")
    command = ["index", "create", str(folder), SOURCE, "--model", str(model), "--shards", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "hashlens", *command, "--ray", cluster.address],
        capture_output=True, text=True, timeout=LATE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    # Ray's core, past Python, warns each time of how Ray Data starts its actors
    said = [line for line in done.stderr.splitlines() if "core_worker.cc" not in line]
    assert [line.split()[0] for line in said] == ["encoding", "error:"]
    assert "a task of the cluster failed: Expecting property name" in said[1]
    assert said[1].endswith("what is done is kept: run the command again")


_DRIVER = """
import sys, time
from pathlib import Path
from hashlens.distributed.encoding import create_sharded

def stop_after_the_first_part(done, total):
    if done:
        time.sleep(600)

create_sharded(Path(sys.argv[1]), Path(sys.argv[2]), "digits#test", shards=3, workers=1,
               address=sys.argv[3], progress=stop_after_the_first_part)
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(
    cluster: Any, model: Path, expected: HashIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    command = [sys.executable, "-c", _DRIVER, str(folder), str(model), cluster.address]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        limit = time.monotonic() + 240
        while not list(folder.glob(f"{WORK}/*.npz")) and time.monotonic() < limit:
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    assert not (folder / "shards.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{WORK}/*.npz")}
    assert kept
    for source, shards in ((SOURCE, SHARDS + 1), ("digits#train", SHARDS)):
        with pytest.raises(IndexStoreError, match="unfinished"):
            create_sharded(folder, model, source, shards=shards)
    seen: list[int] = []
    create_sharded(
        folder, model, SOURCE, shards=SHARDS, workers=1, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] > 0  # what was kept is not encoded again
    _same(folder, expected)


def _picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


def test_a_parquet_file_is_read_and_what_cannot_be_read_is_listed(
    cluster: Any, model: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [_picture(30 * i) for i in range(7)]
    pictures[4] = b"no picture"
    words = ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    path = tmp_path / "pictures.parquet"
    pq.write_table(pa.table({"image": pictures, "label": words, "price": range(7)}), path)
    skipped = create_sharded(tmp_path / "index", model, str(path), shards=2, workers=1)
    ((_, uri, reason),) = skipped
    assert uri == f"{path}#4"
    assert "not an image" in reason
    found = [record[1:] for record in ShardedIndex.open(tmp_path / "index")]
    assert found == [(f"{path}#{i}", words[i], {"price": i}) for i in range(7) if i != 4]


def test_bad_requests_are_refused_and_leave_nothing(
    cluster: Any, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="expected 1 to 359"):
        create_sharded(tmp_path / "index", model, SOURCE, shards=360)
    assert not (tmp_path / "index").exists()
    with pytest.raises(SourceError, match="nowhere"):
        create_sharded(tmp_path / "index", model, str(tmp_path / "nowhere"), shards=2)
    assert not (tmp_path / "index").exists()


def test_objects_of_a_store_are_read_ahead(model: Path, object_store: Any, tmp_path: Path) -> None:
    for i in range(70):
        object_store.pipe(f"/shop/{'cat' if i % 2 else 'dog'}/{i:02}.png", _picture(i))
    object_store.pipe("/shop/dog/00.png", b"no picture")
    folder = tmp_path / "index"
    parts = list_names(str(folder), {"source": "memory://shop", "shards": 2})["parts"]
    assert parts == {"shard-0000-000000": 35, "shard-0001-000000": 35}
    worker = EncodePart(str(folder), str(model), "cpu", 2**30, batch_size=16)
    for part in parts:
        worker({"item": [part]})
    lines = (folder / WORK / "shard-0001-000000.jsonl").read_text().splitlines()
    uri, label, metadata = json.loads(lines[0])
    assert (uri, label, metadata) == ("memory://shop/dog/00.png", "dog", {})
    with np.load(folder / WORK / "shard-0001-000000.npz") as kept:
        assert kept["rows"].tolist() == list(range(1, 35))
        codes, _ = Encoder.load(model).encode([_picture(2)])
        np.testing.assert_array_equal(kept["codes"][0], codes[0])
    ((uri, reason),) = json.loads((folder / WORK / "shard-0001-000000.unread").read_text())
    assert uri == "memory://shop/dog/00.png"
    assert "not an image" in reason


def test_tar_files_of_a_pattern_are_listed_and_encoded(model: Path, tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name, data in (("a.png", _picture(shard)), ("a.cls", b"cat"), ("b.png", b"-")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder = tmp_path / "index"
    plan = list_names(str(folder), {"source": f"{tmp_path}/{{0..2}}.tar", "shards": 2})
    assert plan["notes"] == [
        f"1 of 3 tar files are not whole: {tmp_path}/2.tar: no such file or directory"
    ]
    worker = EncodePart(str(folder), str(model), "cpu", 2**30)
    part = "shard-0001-000000"
    assert worker({"item": [part]})["failed"] == [""]
    lines = (folder / WORK / f"{part}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        [f"{tmp_path}/1.tar#0", "cat", {"key": "a"}],
        [f"{tmp_path}/1.tar#2048", None, {"key": "b"}],
    ]
    ((uri, reason),) = json.loads((folder / WORK / f"{part}.unread").read_text())
    assert uri == f"{tmp_path}/1.tar#2048"
    assert "not an image" in reason


def test_a_part_of_which_no_image_can_be_read_is_not_kept(
    model: Path, object_store: Any, tmp_path: Path
) -> None:
    """Storage that is away is not a thousand damaged images."""
    object_store.pipe("/shop/1.png", _picture(1))
    object_store.pipe("/shop/2.png", _picture(2))
    list_names(str(tmp_path / "index"), {"source": "memory://shop", "shards": 1})
    worker = EncodePart(str(tmp_path / "index"), str(model), "cpu", 2**30)
    object_store.rm("/shop", recursive=True)
    (failed,) = worker({"item": ["shard-0000-000000"]})["failed"]
    assert "shop/1.png: " in failed
    assert "none of 2 images can be read" in failed
    kept = sorted(path.name for path in (tmp_path / "index" / WORK).iterdir())
    assert kept == ["plan.json", "shard-0000-000000.jsonl"]
    object_store.pipe("/shop/2.png", _picture(2))
    assert worker({"item": ["shard-0000-000000"]})["failed"] == [""]
    with np.load(tmp_path / "index" / WORK / "shard-0000-000000.npz") as encoded:
        assert encoded["rows"].tolist() == [1]


def test_a_part_of_damaged_images_alone_is_kept_where_others_can_be_read(
    model: Path, object_store: Any, tmp_path: Path
) -> None:
    object_store.pipe("/shop/1.png", _picture(1))
    object_store.pipe("/shop/2.png", b"damaged")
    list_names(str(tmp_path / "index"), {"source": "memory://shop", "shards": 2})
    worker = EncodePart(str(tmp_path / "index"), str(model), "cpu", 2**30)
    assert worker({"item": ["shard-0001-000000"]})["failed"] == [""]
    with np.load(tmp_path / "index" / WORK / "shard-0001-000000.npz") as encoded:
        assert encoded["rows"].tolist() == []
        assert len(encoded["codes"]) == 0
    ((uri, _),) = json.loads((tmp_path / "index" / WORK / "shard-0001-000000.unread").read_text())
    assert uri == "memory://shop/2.png"


def test_less_memory_means_fewer_images_at_once(model: Path) -> None:
    encoder = Encoder.load(model, device="cpu")
    side, channels = encoder.preprocessing.size, encoder.preprocessing.channels
    assert images_at_once(encoder, 1) == 1
    assert images_at_once(encoder, 2**40) == MOST_IMAGES
    few = images_at_once(encoder, 40 * 8 * side * side * channels)
    assert 1 <= few <= 32


def _worker_with_names(model: Path, folder: Path) -> EncodePart:
    list_names(str(folder / "index"), {"source": SOURCE, "shards": 1})
    return EncodePart(str(folder / "index"), str(model), "cpu", 2**30, batch_size=16)


def test_a_worker_whose_memory_is_short_goes_on_with_fewer_images(
    model: Path, tmp_path: Path
) -> None:
    import torch

    worker, sizes = _worker_with_names(model, tmp_path), []
    run = worker._encoder._runner.run

    class Small:
        def run(self, images: Any) -> Any:
            sizes.append(len(images))
            if len(images) > 4:
                raise torch.OutOfMemoryError("no memory")
            return run(images)

    worker._encoder._runner = Small()
    worker({"item": ["shard-0000-000000"]})
    assert max(sizes) == 16
    assert sizes[-1] <= 4


def test_an_error_that_is_not_about_memory_is_said(model: Path, tmp_path: Path) -> None:
    worker = _worker_with_names(model, tmp_path)

    class Broken:
        def run(self, images: Any) -> Any:
            raise RuntimeError("shapes do not fit")

    worker._encoder._runner = Broken()
    assert worker({"item": ["shard-0000-000000"]})["failed"] == ["shapes do not fit"]


def test_a_local_cluster_is_never_another_that_runs_here(cluster: Any) -> None:
    """Ray remembers the last cluster of a machine, also one that has died since."""
    program = (
        "from hashlens.distributed.cluster import connect\n"
        "print(connect('local').get_runtime_context().gcs_address)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() not in ("", cluster.address)
