"""A process that changes an index without end, telling a journal what it does, to be killed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashlens import HashIndex, ImageError
from hashlens.files import file_state
from hashlens.index import writing
from hashlens.types import Codes, EncodedBatch, Features, Skipped

BITS, WIDTH = 64, 24


def encoded(values: Sequence[int]) -> tuple[Codes, Features]:
    """Code and features that a number stands for."""
    generators = [np.random.default_rng(value) for value in values]
    codes = [rng.integers(0, 256, BITS // 8, dtype=np.uint8) for rng in generators]
    features = [rng.integers(-99, 99, WIDTH).astype(np.float32) for rng in generators]
    return (
        np.array(codes, np.uint8).reshape(-1, BITS // 8),
        np.array(features, np.float32).reshape(-1, WIDTH),
    )


def add_batches(path: Path, batches: int) -> None:
    """Add batches of 20; after every fifth remove the first 20 images and compact."""
    with HashIndex.open(path) as index:
        for batch in range(batches):
            values = [1000 * batch + i for i in range(20)]
            metadata = [{"batch": batch}] * 20
            index.add_encoded(*encoded(values), ["u"] * 20, metadata=metadata)
            if batch % 5 == 4:
                index.remove([record.id for record in index.records()[:20]])
                index.compact()


class NumberEncoder:
    """Encodes files that hold a number."""

    bits, feature_dim, fingerprint = BITS, WIDTH, "5eed"

    def encode(self, images: Sequence[Any]) -> tuple[Codes, Features]:
        return encoded([self._number(image) for image in images])

    def encode_batches(
        self, images: Iterable[Any], *, batch_size: int = 2, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        for position, image in enumerate(images):
            try:
                codes, features = self.encode([image])
            except ImageError as error:
                skipped = (Skipped(position, str(image), str(error)),)
                nothing = encoded([])
                yield EncodedBatch(np.zeros(0, np.int64), *nothing, None, skipped, ())
                continue
            yield EncodedBatch(
                np.array([position]), codes, features, None, (), (file_state(image),)
            )

    @staticmethod
    def _number(image: Any) -> int:
        try:
            return int(Path(image).read_text())
        except (OSError, ValueError) as error:
            raise ImageError(f"{image}: holds no number") from error


class Journal:
    """Operations, one JSON line when they begin and one when they are acknowledged."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, **entry: Any) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())


def elsewhere(folder: Path) -> Path:
    """Another path of the same folder."""
    link = folder.with_name("elsewhere")
    if not link.is_symlink():
        link.symlink_to(folder)
    return link


def list_numbers(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.txt"))


def read_numbers(folder: Path) -> dict[str, int]:
    return {str(path): int(path.read_text()) for path in list_numbers(folder)}


def write_forever(path: Path, folder: Path, journal_path: Path, seed: int) -> None:
    """Add, remove, update, replace, compact, sync and relocate at random."""
    writing.IMAGES_PER_COMMIT = 3  # many commits a sync
    rng = random.Random(seed)
    journal = Journal(journal_path)
    index = HashIndex.open(path, NumberEncoder())
    while True:
        _one_change(index, folder, rng, journal)


def _one_change(index: HashIndex, folder: Path, rng: random.Random, journal: Journal) -> None:
    alive = [record.id for record in index.records() if not record.uri.startswith("/")]
    kind = rng.choice(["add", "add", "remove", "update", "replace", "compact", "sync", "relocate"])
    if kind in ("remove", "update", "replace") and not alive:
        kind = "add"
    if kind == "add":
        values = [rng.randrange(2**40) for _ in range(rng.choice([1, 5, max(1, 400 - len(alive))]))]
        journal.say(op="add", values=values)
        ids = index.add_encoded(
            *encoded(values), [f"n:{v}" for v in values], metadata=[{"value": v} for v in values]
        )
        journal.say(done=ids.tolist())
    elif kind == "remove":
        ids = rng.sample(alive, min(len(alive), rng.choice([1, 9, 200])))
        journal.say(op="remove", ids=ids)
        index.remove(ids)
        journal.say(done=True)
    elif kind == "update":
        image_id, label = rng.choice(alive), f"label {rng.randrange(99)}"
        journal.say(op="update", id=image_id, label=label)
        index.update(image_id, label=label)
        journal.say(done=True)
    elif kind == "replace":
        # Codes and features must go on matching the record, so the value stays.
        image_id = rng.choice(alive)
        value = index.get(image_id).metadata["value"]
        journal.say(op="replace", id=image_id)
        index.replace_encoded([image_id], *encoded([value]))
        journal.say(done=True)
    elif kind == "compact":
        journal.say(op="compact")
        index.compact()
        journal.say(done=True)
    elif kind == "relocate":
        if len(alive) < len(index):  # some images are of files
            journal.say(op="relocate")
            for old, new in ((folder, elsewhere(folder)), (elsewhere(folder), folder)):
                index.relocate(old, new)
            journal.say(done=True)
    else:
        for _ in range(rng.randrange(1, 12)):
            file = folder / f"{rng.randrange(20)}.txt"
            if rng.random() < 0.3:
                file.unlink(missing_ok=True)
            else:
                file.write_text(str(rng.randrange(2**40)))
        (folder / "always.txt").write_text("1")
        journal.say(op="sync", files=read_numbers(folder))
        index.sync(folder, list_numbers(folder))
        journal.say(done=True)
