"""Encoding on Ray makes the index that one process would make, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hashlens import HashIndex, IndexStoreError, InvalidInputError, SourceError
from hashlens.distributed.encoding import COMPLETE_NAME, Images, create_sharded, open_images

N = 240
SHARDS = 3


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> HashIndex:
    """The same images, encoded and indexed in this process."""
    from hashlens import Encoder

    images = _images()
    encoder = Encoder.load(model)
    index = HashIndex.create(tmp_path_factory.mktemp("expected") / "index", encoder)
    index.add(list(images.uris), labels=list(images.labels))
    return index


def _images() -> Images:
    whole = open_images("digits#test")
    return Images(whole.spec, list(whole.uris[:N]), whole.labels[:N])


def _same(folder: Path, expected: HashIndex) -> None:
    start = 0
    for i in range(SHARDS):
        with HashIndex.open(folder / f"shard-{i:04d}", read_only=True) as shard:
            ids, codes, features = shard.encoded()
            wanted = expected.encoded(range(start, start + len(ids)))
            # sums are rounded in another order in batches of another size
            assert np.unpackbits(codes ^ wanted[1]).mean() < 1e-3
            np.testing.assert_allclose(features, wanted[2], rtol=2e-3, atol=2e-3)
            got = [(r.uri, r.label) for r in shard.records()]
            assert got == [
                (r.uri, r.label) for r in expected.records(range(start, start + len(ids)))
            ]
            start += len(ids)
    assert start == len(expected)


def test_it_makes_the_same_index_while_a_worker_is_killed(
    cluster: Any, model: Path, expected: HashIndex, tmp_path: Path
) -> None:
    killed = []

    def kill_an_encoder() -> None:
        limit = time.monotonic() + 120
        while not killed and time.monotonic() < limit:
            for process in psutil.process_iter(["cmdline"]):
                if any("MapWorker" in word for word in process.info["cmdline"] or ()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            time.sleep(0.02)

    thread = threading.Thread(target=kill_an_encoder)
    thread.start()
    done: list[int] = []
    folder = tmp_path / "index"
    catalogue = create_sharded(
        folder, model, _images(), shards=SHARDS, workers=1, batch_size=16, progress=done.append
    )
    thread.join()
    assert killed
    assert sum(done) == catalogue.next_id == N
    assert [shard.count for shard in catalogue.shards] == [80, 80, 80]
    _same(folder, expected)
    with pytest.raises(IndexStoreError, match="holds a sharded index already"):
        create_sharded(folder, model, _images(), shards=SHARDS)


_DRIVER = """
import sys
import time
from pathlib import Path
from hashlens.distributed.encoding import Images, create_sharded, open_images
whole = open_images("digits#test")
images = Images(whole.spec, list(whole.uris[:240]), whole.labels[:240])
done = 0
def stop_in_the_second_shard(images):
    global done
    done += images
    if done > 80:
        time.sleep(600)
create_sharded(Path(sys.argv[1]), Path(sys.argv[2]), images, shards=3, workers=1,
               address=sys.argv[3], progress=stop_in_the_second_shard)
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(
    cluster: Any, model: Path, expected: HashIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    command = [sys.executable, "-c", _DRIVER, str(folder), str(model), cluster.address]
    first = folder / "shard-0000" / COMPLETE_NAME
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        limit = time.monotonic() + 240
        while not first.exists() and driver.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        driver.kill()
    assert first.exists()
    assert not (folder / "shards.json").exists()
    made = first.stat().st_mtime_ns
    with pytest.raises(IndexStoreError, match="unfinished"):
        create_sharded(folder, model, _images(), shards=SHARDS + 1)
    others = Images("digits#test", _images().uris[::-1], _images().labels[::-1])
    with pytest.raises(IndexStoreError, match="unfinished"):
        create_sharded(folder, model, others, shards=SHARDS)
    create_sharded(folder, model, _images(), shards=SHARDS, workers=1)
    assert first.stat().st_mtime_ns == made
    _same(folder, expected)


def test_objects_behind_a_file_system_are_read_and_bad_ones_listed(
    cluster: Any, model: Path, tmp_path: Path
) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(pictures / name / f"{i}.png")
    (pictures / "dog" / "broken.png").write_bytes(b"no picture")
    images = open_images(f"file://{pictures}")
    assert images.labels == ["cat"] * 3 + ["dog"] * 4
    catalogue = create_sharded(tmp_path / "index", model, images, shards=2, workers=1)
    assert [shard.count for shard in catalogue.shards] == [3, 3]
    ((uri, reason),) = catalogue.shards[1].skipped
    assert uri == f"{pictures}/dog/broken.png"
    assert "not an image" in reason


def test_a_parquet_file_is_read_row_by_row(cluster: Any, model: Path, tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    pictures = []
    for i in range(7):
        file = io.BytesIO()
        Image.new("L", (8, 8), 30 * i).save(file, "PNG")
        pictures.append(file.getvalue())
    pictures[4] = b"no picture"
    words = ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    path = tmp_path / "pictures.parquet"
    pq.write_table(pa.table({"image": pictures, "label": words}), path, row_group_size=3)
    images = open_images(str(path))
    catalogue = create_sharded(tmp_path / "index", model, images, shards=2, workers=1)
    ((uri, _),) = [entry for shard in catalogue.shards for entry in shard.skipped]
    assert uri == f"{path}#4"
    records = []
    for shard in catalogue.shards:
        with HashIndex.open(tmp_path / "index" / shard.folder, read_only=True) as index:
            records += [(record.uri, record.label) for record in index.records()]
    assert records == [(f"{path}#{i}", words[i]) for i in range(7) if i != 4]


def test_bad_requests_are_refused_before_anything_runs(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected 1 to 240"):
        create_sharded(tmp_path / "index", model, _images(), shards=241)
    with pytest.raises(SourceError, match="no images found"):
        open_images(f"file://{tmp_path}")
    with pytest.raises(SourceError, match="nonsense://"):
        open_images("nonsense://bucket/pictures")
