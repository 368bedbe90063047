"""Compares the speed of two versions of Hashlens, given as folders that hold the package.

    python benchmarks/compare_versions.py OLD/src NEW/src [--rounds 15] [--case search] [--json]

Each version has a process of its own. In every round each case runs once in either process, one
after the other, and the order changes from round to round: what else the machine does then
slows both alike. Printed are the shortest times, the ratios new / old of minima and medians, and
the same of processor time (of all threads), which other programs disturb least.
Only names that both versions have are used. The data are random, with a fixed seed. An exported
model that the environment variable MODEL names is run in place of a small one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

MODEL = Path(
    os.environ.get("MODEL")
    or Path(__file__).parents[1] / "tests" / "data" / "models" / "format-2.onnx"
)
IMAGES, BITS, WIDTH, QUERIES = 200_000, 64, 16, 256
ADDED, FILES = 20_000, 200


class Case(NamedTuple):
    """Something to time: ``repeats`` runs of ``run`` are one measurement."""

    run: Callable[[], Any]
    repeats: int = 1


def encoded(count: int, bits: int, width: int) -> dict[str, Any]:
    """Random images as arguments of ``add_encoded``."""
    random = np.random.default_rng(1)
    centres = random.integers(0, 256, (100, bits // 8), dtype=np.uint8)
    noise = np.packbits(random.random((count, bits)) < 0.1, axis=1)
    classes = random.integers(0, len(centres), count)
    return {
        "codes": centres[classes] ^ noise,
        "features": random.random((count, width), np.float32),
        "uris": [f"/photos/{number}.jpg" for number in range(count)],
        "labels": [f"class {number}" for number in classes],
        "metadata": [{"price": number % 1000} for number in range(count)],
    }


def pictures(folder: Path) -> list[Path]:
    """Image files of 64 x 48 random colours."""
    random = np.random.default_rng(2)
    paths = [folder / f"{number}.jpg" for number in range(FILES)]
    for path in paths:
        small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def cases(folder: Path) -> dict[str, Case]:
    """All cases of this process's version, with their files in ``folder``."""
    from click.testing import CliRunner
    from typer.main import get_command

    from hashlens import Encoder, HashIndex, hamming_topk
    from hashlens.cli.main import app

    encoder = Encoder.load(MODEL)
    images = encoded(IMAGES, BITS, WIDTH)
    large = HashIndex.create(folder / "large.idx", bits=BITS, feature_dim=WIDTH)
    large.add_encoded(**images)
    added = {name: values[:ADDED] for name, values in images.items()}
    paths = pictures(folder)
    small = HashIndex.create(folder / "small.idx", encoder)
    small.add(paths)
    picture = io.BytesIO(paths[7].read_bytes()).getvalue()
    ids = list(range(0, IMAGES, IMAGES // QUERIES))[:QUERIES]
    queries = images["codes"][ids]
    made = encoder.preprocessing
    batch = np.random.default_rng(3).random((64, *made.shape), np.float32)

    def empty(name: str) -> Path:
        shutil.rmtree(folder / name, ignore_errors=True)
        return folder / name

    def add_encoded() -> None:
        with HashIndex.create(empty("added.idx"), bits=BITS, feature_dim=WIDTH) as index:
            index.add_encoded(**added)

    def add_files() -> None:
        with HashIndex.create(empty("files.idx"), encoder) as index:
            index.add(paths)

    def train() -> None:
        options = ["--out", str(empty("model")), "--bits", "16", "--epochs", "2"]
        result = CliRunner().invoke(get_command(app), ["train", "digits#train", *options])
        if result.exit_code != 0:
            raise RuntimeError(result.output)

    return {
        "search by one picture, 200 images": Case(lambda: small.search(picture), 50),
        "search by one id, 200,000 images": Case(lambda: large.search(17), 100),
        "search by 256 ids, 200,000 images": Case(lambda: large.search(ids), 2),
        "hamming_topk, 256 of 200,000 codes": Case(
            lambda: hamming_topk(images["codes"], queries, k=10), 5
        ),
        "network on 64 prepared images": Case(lambda: encoder.encode_prepared(batch)),
        "network on 1 prepared image": Case(lambda: encoder.encode_prepared(batch[:1]), 10),
        "add 20,000 encoded images": Case(add_encoded),
        "add 200 image files": Case(add_files),
        "train on digits, 2 epochs": Case(train),
    }


def serve(folder: Path) -> None:
    """Run the case that each line of standard input names, and answer its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what commands print is not an answer
    known = cases(folder)
    print(json.dumps(list(known)), file=answers, flush=True)
    for line in sys.stdin:
        case = known[line.rstrip("\n")]
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(case.repeats):
            case.run()
        times = time.perf_counter() - began, time.process_time() - worked
        print(*(seconds / case.repeats for seconds in times), file=answers, flush=True)


class Version:
    """A process that runs cases with the package in ``source``."""

    def __init__(self, source: Path, folder: Path) -> None:
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # one thread in torch: waiting threads would spin, and count as processor time
            env={**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self.cases: list[str] = json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: a version failed; its message is above")
        return line

    def seconds(self, case: str) -> list[float]:
        """How long the case takes, once: by the clock, and of the processor."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        return [float(seconds) for seconds in self._answer().split()]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compare(old: Version, new: Version, case: str, rounds: int) -> dict[str, float]:
    """Times of one case, taken in turns."""
    times: dict[Version, list[list[float]]] = {old: [], new: []}
    for number in range(-1, rounds):
        for version in (old, new) if number % 2 else (new, old):
            seconds = version.seconds(case)
            if number >= 0:  # the first round loads and compiles
                times[version].append(seconds)
    (before, worked_before), (after, worked_after) = (
        zip(*times[v], strict=True) for v in (old, new)
    )
    return {
        "old_min_ms": 1e3 * min(before),
        "new_min_ms": 1e3 * min(after),
        "ratio_of_minima": min(after) / min(before),
        "ratio_of_medians": median(after) / median(before),
        "old_processor_ms": 1e3 * min(worked_before),
        "new_processor_ms": 1e3 * min(worked_after),
        "processor_ratio": min(worked_after) / min(worked_before),
    }


def main() -> None:
    """Time and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="folder that holds the old package")
    parser.add_argument("new", type=Path, help="folder that holds the new package")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", default="", help="only cases whose name has this text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Version(options.old, Path(folder) / "old")
        new = Version(options.new, Path(folder) / "new")
        found = {}
        for case in filter(lambda case: options.case in case, old.cases):
            found[case] = figures = compare(old, new, case, options.rounds)
            if not options.json:
                if len(found) == 1:
                    names = (name.replace("_", " ") for name in figures)
                    print(f"{'':36}" + "".join(f"{name:>18}" for name in names))
                values = "".join(f"{figure:18.3f}" for figure in figures.values())
                print(f"{case:36}{values}", flush=True)
        old.close()
        new.close()
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
