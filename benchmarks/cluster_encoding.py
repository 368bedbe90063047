"""What encoding on a cluster costs next to one process, and what the driver holds.

    python benchmarks/cluster_encoding.py overhead SOURCE MODEL --images 2000
    python benchmarks/cluster_encoding.py names --count 1000000
    python benchmarks/cluster_encoding.py names --count 1000000 --kind folder

``overhead`` encodes the first images of a source into an index, in one process and on a cluster of
this machine; processor seconds and resident memory are those of the whole tree of processes.
``names`` lists so many names in a task of the cluster, as encoding does, and prints the greatest
memory of the driver and of the task, each before and after: of a CSV file whose images exist
nowhere, of a ``folder`` of 100 classes with empty files, of a ``parquet`` file without pictures, or
of ``tar`` files of 10,000 samples of an empty picture, a label and a JSON text.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil

ONE = """
import sys
from pathlib import Path
from hashlens import Encoder, HashIndex, open_source
source, model, out = sys.argv[1:4]
images = open_source(source)
with HashIndex.create(out, Encoder.load(model)) as index:
    index.add(list(images.uris))
"""
CLUSTER = """
import sys
from pathlib import Path
from hashlens.distributed.encoding import create_sharded
source, model, out = sys.argv[1:4]
create_sharded(Path(out), Path(model), source, shards=2, address="local")
"""
NAMES = """
import json, sys, time
from hashlens.distributed.cluster import connect
from hashlens.distributed.encoding import list_names
from hashlens.machine import peak_memory
source, folder = sys.argv[1:3]
ray = connect("local")
before = peak_memory()

def listed():
    before, began = peak_memory(), time.process_time()
    plan = list_names(folder, {"source": source, "shards": 8})
    return plan["parts"], time.process_time() - began, before, peak_memory()

parts, seconds, *task = ray.get(ray.remote(listed).remote())
print(json.dumps({"names": sum(parts.values()), "parts": len(parts), "CPU s": round(seconds),
                  "driver": [before, peak_memory()], "task": task}))
"""


def tree_cost(program: str, *arguments: str) -> tuple[float, float, int]:
    """Seconds, processor seconds, and the most resident bytes of a program and its children."""
    began = time.monotonic()
    running = subprocess.Popen([sys.executable, "-c", program, *arguments])
    busy: dict[int, float] = {}
    most = 0
    root = psutil.Process(running.pid)
    while running.poll() is None:
        memory = 0
        for process in [root, *_children(root)]:
            try:
                times = process.cpu_times()
                busy[process.pid] = times.user + times.system
                memory += process.memory_full_info().uss
            except psutil.Error:
                continue
        most = max(most, memory)
        time.sleep(0.25)
    if running.returncode:
        raise SystemExit(f"the program ended with {running.returncode}")
    return time.monotonic() - began, sum(busy.values()), most


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []


def overhead(source: str, model: str, images: int) -> None:
    """Print the cost of one process and of a cluster, taking turns."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / "images.parquet"
        pq.write_table(pq.read_table(source).slice(0, images), some)
        for name, program in (("one process", ONE), ("cluster", CLUSTER)):
            wall, busy, most = tree_cost(program, str(some), model, f"{folder}/{name}")
            print(f"{name}, {images} images: {wall:.1f} s, {busy:.1f} CPU s, {most / 2**20:.0f} MB")


def names(count: int, kind: str) -> None:
    """Print the memory of the driver and of the task that lists."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / f"images.{kind}"
        if kind == "folder":
            for label in range(100):
                (listing / f"{label:02d}").mkdir(parents=True)
            for i in range(count):
                (listing / f"{i % 100:02d}" / f"{i:012d}.jpg").touch()
        elif kind == "tar":
            text = json.dumps({"caption": "a picture of a thing", "width": 640}).encode()
            for first in range(0, count, 10_000):
                with tarfile.open(f"{folder}/{first:012d}.tar", "w") as tar:
                    for i in range(first, min(first + 10_000, count)):
                        for suffix, data in (
                            ("cls", b"%d" % (i % 100)),
                            ("jpg", b""),
                            ("json", text),
                        ):
                            member = tarfile.TarInfo(f"{i:012d}.{suffix}")
                            member.size = len(data)
                            tar.addfile(member, io.BytesIO(data))
            listing = Path(folder) / "*.tar"
        elif kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"image": [b""] * count, "label": [0] * count}), listing)
        else:
            with listing.open("w") as file:
                file.write("path,label\n")
                file.writelines(f"/photos/of/a/shop/{i:012d}.jpg,a\n" for i in range(count))
        done = subprocess.run(
            [sys.executable, "-c", NAMES, str(listing), f"{folder}/out"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        for process in ("driver", "task"):
            found[process] = " to ".join(f"{memory / 2**20:.0f} MB" for memory in found[process])
        print(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("overhead")
    one.add_argument("source", help="a parquet file")
    one.add_argument("model")
    one.add_argument("--images", type=int, default=2000)
    other = commands.add_parser("names")
    other.add_argument("--count", type=int, default=10_000_000)
    other.add_argument("--kind", choices=["csv", "folder", "parquet", "tar"], default="csv")
    given = parser.parse_args()
    if given.command == "names":
        names(given.count, given.kind)
    else:
        overhead(given.source, given.model, given.images)
