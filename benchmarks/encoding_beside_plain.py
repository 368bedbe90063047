"""Photographs to codes, next to the loop that one would write with Pillow and ONNX Runtime.

    python benchmarks/encoding_beside_plain.py MODEL.onnx SOURCE [--images N] [--rounds R] [--json]

Pictures of the source become JPEG files of 640 x 480 (``--size``). Everything takes turns in one
process: each part of the work alone on all cores (decode, transform, network, write), the whole
of it (files to codes, and to an index on the disk), the same network in a plain loop, with and
without a pool of threads that decodes, and other ways to decode. *Parts together* is what the sum
of the parts' times allows: they share the cores, so no overlap can beat it where all are busy.
Processor seconds are given too, as wall time on a shared machine says little.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hashlens import Encoder, HashIndex, open_source
from hashlens.bench.timing import environment, machine_line
from hashlens.codes.threads import thread_count
from hashlens.data.opening import load_image
from hashlens.machine import cores

BATCH = 64
PARTS = ("decode", "transform", "network", "write")
WHOLE = ("files to codes", "files to an index", "plain loop", "plain loop, decoding in threads")


def photographs(spec: str, count: int, size: tuple[int, int], folder: Path) -> list[Path]:
    """Pictures of a source as JPEG files, as a phone or a shop might make them."""
    source, paths = open_source(spec), []
    for i in range(count):
        paths.append(folder / f"{i:05}.jpg")
        picture = source.load(i % len(source)).convert("RGB").resize(size)
        picture.save(paths[-1], "JPEG", quality=90)
    return paths


def calls_of(
    model: Path, paths: list[Path], folder: Path, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    import onnxruntime

    encoder = Encoder.load(model)
    made = encoder.preprocessing
    hint, side = made.size_hint, made.size
    pictures = [load_image(path, size_hint=hint) for path in paths]
    pixels = np.stack([made.pixels(picture) for picture in pictures])
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    ready = [made.normalise(batch) for batch in batches]
    codes, features = encoder.encode(pictures)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name, outputs = session.get_inputs()[0].name, ["latent", "features"]
    mean, std = np.array(made.mean, np.float32), np.array(made.std, np.float32)
    number = iter(range(1 << 30))

    def plain_input(path: Path) -> Any:
        picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return ((np.asarray(picture, np.float32) / 255 - mean) / std).transpose(2, 0, 1)

    def plain(inputs: Callable[[list[Path]], Any]) -> None:
        for at in range(0, len(paths), BATCH):
            images = np.stack(list(inputs(paths[at : at + BATCH])))
            np.packbits(session.run(outputs, {name: images})[0] > 0, axis=1, bitorder="little")

    def transform() -> None:
        list(pool.map(made.pixels, pictures))
        for batch in batches:
            made.normalise(batch)

    def write() -> None:
        with HashIndex.create(folder / f"{next(number)}.idx", encoder) as index:
            index.add_encoded(codes, features, [str(path) for path in paths])

    def index_files() -> None:
        with HashIndex.create(folder / f"{next(number)}.idx", encoder) as index:
            index.add(paths)

    calls: dict[str, Callable[[], Any]] = {
        "decode": lambda: list(pool.map(lambda path: load_image(path, size_hint=hint), paths)),
        "transform": transform,
        "network": lambda: [encoder.encode_prepared(batch) for batch in ready],
        "write": write,
        "files to codes": lambda: list(encoder.encode_batches(paths, batch_size=BATCH)),
        "files to an index": index_files,
        "plain loop": lambda: plain(lambda some: map(plain_input, some)),
        "plain loop, decoding in threads": lambda: plain(lambda some: pool.map(plain_input, some)),
        "the network, plain session": lambda: [
            session.run(outputs, {name: batch}) for batch in ready
        ],
        "decode by Pillow, whole": lambda: list(
            pool.map(lambda path: Image.open(path).convert("RGB"), paths)
        ),
        "read the files": lambda: [path.read_bytes() for path in paths],
    }
    try:
        from torchvision.io import decode_jpeg, read_file
    except ImportError:
        return calls
    calls["decode by torchvision, whole"] = lambda: list(
        pool.map(lambda path: decode_jpeg(read_file(str(path))), paths)
    )
    return calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an exported .onnx")
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    wall: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(cores()) as pool:
        folder = Path(name)
        paths = photographs(options.source, options.images, tuple(options.size), folder)
        calls = calls_of(options.model, paths, folder, pool)
        rng = np.random.default_rng(0)
        for turn in range(options.rounds + 1):
            for key in rng.permutation(list(calls)).tolist():
                began, used = time.perf_counter(), time.process_time()
                calls[key]()
                if turn:  # the first is not counted
                    wall.setdefault(key, []).append(time.perf_counter() - began)
                    busy.setdefault(key, []).append(time.process_time() - used)
    least = {key: min(times) for key, times in wall.items()}
    found = {
        "environment": environment(thread_count()),
        "images": options.images,
        "size": list(options.size),
        "seconds": wall,
        "processor_seconds": busy,
        "parts_together": options.images / sum(least[part] for part in PARTS),
    }
    if options.json:
        print(json.dumps(found))
        return
    out = io.StringIO()
    print(machine_line(found["environment"]), f"{options.images} JPEGs of {options.size}", file=out)
    print("\n| | images a second, best | median | processor ms an image |", file=out)
    print("|---|---:|---:|---:|", file=out)
    for key in (*PARTS, *WHOLE, *(key for key in calls if key not in (*PARTS, *WHOLE))):
        best, middle = options.images / least[key], options.images / np.median(wall[key])
        cost = 1000 * min(busy[key]) / options.images
        print(f"| {key} | {best:,.0f} | {middle:,.0f} | {cost:.2f} |", file=out)
        if key == PARTS[-1]:
            print(f"| parts together | {found['parts_together']:,.0f} | | |", file=out)
    print(out.getvalue())


if __name__ == "__main__":
    main()
