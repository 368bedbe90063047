"""Writes tests/data/written-by-0.1.0, as a user of that version would: with its commands.

    PYTHONPATH=/path/to/0.1.0/src python tests/golden_files.py

The files are made once and kept. Never make them again to let a failing test pass.

``photos/``       six small pictures in two classes, from scikit-learn's digits
``more/``         four more
``model/``        a trained model
``unfinished/``   the same training, killed after its first epoch
``photos.idx/``   an index of all with labels, metadata and one removed image
``shards.idx/``   the same in two shards
``answers.json``  what searches of these gave
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hashlens import Encoder, HashIndex

FOLDER = Path(__file__).parent / "data" / "written-by-0.1.0"
CLASSES = {3: "three", 7: "seven"}
TRAIN = ("train", "digits#train", "--out")
HOW = (
    "--bits",
    "16",
    "--epochs",
    "3",
    "--backbone",
    "resnet9?width=1",
    "--size",
    "16",
    "--precision",
    "fp32",
)
WHERE = {"shelf": 3}
MODES = ("hds", "bcs", "es")


def command(*words: object) -> list[str]:
    """``hashlens WORDS...`` as arguments for a process."""
    return [sys.executable, "-m", "hashlens", *map(str, words)]


def environment() -> dict[str, str]:
    """One thread: sums over more threads are rounded in another order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def hashlens(*words: object) -> str:
    """What ``hashlens WORDS...`` prints."""
    done = subprocess.run(
        command(*words), env=environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def pictures(folder: Path) -> list[Path]:
    """All pictures' files, in order."""
    return sorted(folder.glob("*/*/*.png"))


def answers(index: Any, folder: Path) -> dict[str, Any]:
    """What an index, whole or in shards, answers about the pictures in ``folder``."""
    queries = [path.read_bytes() for path in pictures(folder)[::3]]
    found = {mode: [index.search(query, k=6, mode=mode) for query in queries] for mode in MODES}
    found["where"] = [index.search(query, k=6, where=WHERE) for query in queries]
    return {
        name: [
            [[hit.id, hit.uri, hit.label, hit.metadata, hit.hamming] for hit in hits]
            for hits in lists
        ]
        for name, lists in found.items()
    }


def write_pictures(folder: Path, numbers: range) -> None:
    """Some images of each class, as PNG files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit, name in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in numbers:
            row = np.flatnonzero(digits.target == digit)[number]
            pixels = (digits.images[row] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png", optimize=True)


def write_unfinished(folder: Path) -> None:
    """Start a training, and kill it when the state of its first epoch is kept."""
    started = subprocess.Popen(command(*TRAIN, folder, *HOW), env=environment())
    while not (folder / "run" / "last.safetensors").exists():
        if started.poll() is not None:
            raise RuntimeError("the training ended too early")
        time.sleep(0.001)
    started.send_signal(signal.SIGKILL)
    started.wait()


def main() -> None:
    """Write everything; the indexes name pictures as ``/photos/CLASS/N.png``."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    photos, more, model = Path("/photos"), Path("/more"), Path("/model")
    write_pictures(photos, range(3))
    write_pictures(more, range(3, 5))
    shutil.copytree(photos, FOLDER / "photos")
    shutil.copytree(more, FOLDER / "more")
    hashlens(*TRAIN, model, *HOW)
    write_unfinished(FOLDER / "unfinished")
    for name, options in (("photos.idx", ()), ("shards.idx", ("--shards", "2"))):
        index = FOLDER / name
        hashlens("index", "create", index, photos, "--model", model, *options)
        hashlens("index", "add", index, more, "--metadata", "shelf=3")
        hashlens("index", "remove", index, photos / "three" / "1.png")
    for shard in (FOLDER / "shards.idx").glob("shard-*"):
        HashIndex.open(shard).close()  # moves what the killed actors left in the log
    shutil.copytree(model, FOLDER / "model")
    for folder in ("model", "unfinished"):
        shutil.rmtree(FOLDER / folder / "logs")  # their names hold the machine's
    found = {}
    encoder = Encoder.load(model)
    with HashIndex.open(FOLDER / "photos.idx", encoder) as opened:
        found["index"] = answers(opened, FOLDER)
    codes, _ = encoder.encode(pictures(FOLDER))
    found["codes"] = [code.tobytes().hex() for code in codes]
    (FOLDER / "answers.json").write_text(json.dumps(found) + "\n")
    for path in (photos, more, model):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
