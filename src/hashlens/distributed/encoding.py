"""A source to a sharded index: Ray Data encodes, and each shard is written by a task of its own.

A task lists the source and writes the names in parts of a thousand, so that no other process holds
a list of all images. Workers take part after part: each is read, encoded and kept as one file. Then
the shards are written from their parts, several at once. A run that was killed keeps every part and
every shard; the next one makes the others. All this is in ``encoding``, a folder of the index that
goes when the index is whole: the plan, and of each part the names, what was encoded, and which
images could not be read.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from hashlens.data.image import ImageWarning
from hashlens.data.opening import can_open, open_source
from hashlens.distributed.cluster import connect, plain_errors
from hashlens.distributed.snapshots import (
    Manifest,
    Snapshot,
    is_sharded,
    seal,
    shard_name,
    snapshot_name,
    write_manifest,
)
from hashlens.errors import IndexStoreError, InvalidInputError, SourceError, first_line
from hashlens.files import path_uri, replace_file, written_aside
from hashlens.index.hash_index import HashIndex
from hashlens.index.layout import Meta
from hashlens.index.store import Store, new_folder, require_free
from hashlens.machine import peak_memory
from hashlens.models.encoder import Encoder
from hashlens.types import Skipped

WORK, PLAN_NAME = "encoding", "plan.json"
FEATURES = "float16"
PART_IMAGES, MOST_IMAGES, _PROBE = 1024, 256, 16  # in a file, at once, and to try memory with
_MEMORY_USED, _MEMORY_UNKNOWN = 0.5, 2**32


def create_sharded(
    folder: Path,
    model: Path,
    source: str,
    *,
    shards: int,
    address: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Skipped]:
    """Encode a source on a Ray cluster into a new sharded index, or go on with a killed run.

    Returns the images that could not be read. All machines must reach ``folder``, ``model`` and
    ``source``. ``workers`` is by default one per GPU, or per CPU where there is none;
    ``batch_size`` as many images as memory allows. ``progress`` is given images done, and all.
    """
    encoder = Encoder.load(model)
    _ = encoder.preprocessing  # a model over vectors is refused
    folder, place = folder.absolute(), str(model.resolve())
    asked = {"source": source, "shards": shards, "fingerprint": encoder.fingerprint}
    plan = _unfinished(folder, asked)
    ray = connect(address)
    if plan is None:
        with plain_errors(ray):
            plan = ray.get(ray.remote(list_names).options(num_cpus=0).remote(str(folder), asked))
    for note in plan.get("notes", ()):
        warn(f"{source}: {note}", ImageWarning, 2)
    parts: dict[str, int] = plan["parts"]
    left = [part for part in parts if not (folder / WORK / f"{part}.npz").is_file()]
    images = sum(parts.values())
    done = images - sum(parts[part] for part in left)
    meta = Meta(encoder.bits, encoder.feature_dim, FEATURES, encoder.fingerprint, path_uri(model))
    with plain_errors(ray):
        for part in chain([""], _encode_parts(folder, place, left, workers, batch_size)):
            done += parts.get(part, 0)
            if progress is not None:
                progress(done, images)
        write = ray.remote(write_shard).options(num_cpus=1)
        made = ray.get([write.remote(str(folder), meta, name) for name in plan["snapshots"]])
    write_manifest(folder, Manifest(meta, tuple(made)))
    unread = (json.loads(path.read_text()) for path in sorted((folder / WORK).glob("*.unread")))
    skipped = [Skipped(-1, *image) for image in chain.from_iterable(unread)]
    shutil.rmtree(folder / WORK)
    return skipped


def _unfinished(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The plan of the same index where it was not finished; None where none was begun."""
    path = folder / WORK / PLAN_NAME
    if is_sharded(folder):
        raise IndexStoreError(
            f"{folder}: holds a sharded index already; add to it, or choose another folder"
        )
    if not path.is_file():
        require_free(folder)
        return None
    plan: dict[str, Any] = json.loads(path.read_text())
    if plan | asked != plan:
        raise IndexStoreError(
            f"{folder}: an unfinished index of another source, model or number of shards; "
            "remove the folder to start again"
        )
    return plan


def list_names(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Begin an index: write names, labels and metadata of its source in parts; the plan.

    It has the number of images of each part, and a name for each snapshot. The name of a part
    begins with that of its shard.
    """
    images, shards = open_source(asked["source"]), asked["shards"]
    if not 1 <= shards <= len(images):
        raise InvalidInputError(f"shards: expected 1 to {len(images)} (the images), got {shards}")
    names = [snapshot_name(shard, 1) for shard in range(shards)]
    plan = {**asked, "snapshots": names, "parts": {}, "notes": list(images.notes)}
    bounds = np.linspace(0, len(images), shards + 1).astype(int).tolist()
    uris, label, known = images.uris, images.label_name, images.metadata
    with new_folder(Path(folder)) as aside:
        (aside / WORK).mkdir(parents=True)
        for shard, (start, end) in enumerate(pairwise(bounds)):
            for number, first in enumerate(range(start, end, PART_IMAGES)):
                rows = range(first, min(first + PART_IMAGES, end))
                lines = [json.dumps([uris[row], label(row), known(row)]) for row in rows]
                part = f"{shard_name(shard)}-{number:06d}"
                (aside / WORK / f"{part}.jsonl").write_text("\n".join(lines))
                plan["parts"][part] = len(rows)
        (aside / WORK / PLAN_NAME).write_text(json.dumps(plan))
    return plan


def _read_names(work: Path, part: str) -> list[tuple[str, str | None, dict[str, Any]]]:
    return [tuple(json.loads(line)) for line in (work / f"{part}.jsonl").read_text().splitlines()]


def _encode_parts(
    folder: Path, model: str, parts: list[str], workers: int | None, batch_size: int | None
) -> Iterator[str]:
    """Encode parts; yields those that are done."""
    if not parts:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = connect().cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = max(1, min(len(parts), workers or gpus or int(resources.get("CPU", 1))))
    memory = int(resources.get("memory", _MEMORY_UNKNOWN) * _MEMORY_USED / most)
    data = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        EncodePart,
        fn_constructor_args=(str(folder), model, "cuda" if gpus else "cpu", memory, batch_size),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_gpus=1 if gpus else None,
    )
    for row in data.iter_rows():
        if row["failed"]:
            raise ray.exceptions.RayError(row["failed"])
        yield str(row["item"])


class EncodePart:
    """Encodes the images of a part, and keeps the result as one file."""

    def __init__(
        self, folder: str, model: str, device: str, memory: int, batch_size: int | None = None
    ) -> None:
        self._work = Path(folder) / WORK
        self._encoder = Encoder.load(model, device=device)
        is_cpu = device == "cpu"  # a GPU says itself when its memory is short
        most = images_at_once(self._encoder, memory) if is_cpu else MOST_IMAGES
        self._batch_size = batch_size or most

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the part that is named in column item; column failed says what went wrong."""
        try:
            self._encode(str(batch["item"][0]))
            failed = ""
        except Exception as error:  # Ray Data would write its own lines, and not pass the cause on
            failed = first_line(error)
        return {**batch, "failed": [failed]}

    def _encode(self, part: str) -> None:
        uris = [uri for uri, *_ in _read_names(self._work, part)]
        while True:
            try:
                made = list(self._encoder.encode_batches(uris, batch_size=self._batch_size))
                break
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or self._batch_size == 1:
                    raise
                self._batch_size //= 2
        unread = [(uris[image.position], image.reason) for each in made for image in each.skipped]
        if len(unread) == len(uris):
            # damaged images, or storage that is away? then no other part can be read either
            parts = sorted(path.stem for path in self._work.glob("*.jsonl"))[:8]
            if not any(can_open(_read_names(self._work, each)[0][0]) for each in parts):
                raise SourceError(
                    f"{uris[0]}: {unread[0][1]}; none of {len(uris)} images can be read: see that "
                    "their storage answers"
                )
        if unread:
            replace_file(self._work / f"{part}.unread", json.dumps(unread))
        columns = zip(*((each.positions, each.codes, each.features) for each in made), strict=True)
        rows, codes, features = map(np.concatenate, columns)

        def save(aside: Path) -> None:
            np.savez(aside, rows=rows, codes=codes, features=features.astype(FEATURES))

        replace_file(self._work / f"{part}.npz", save)


def write_shard(folder: str, meta: Meta, name: str) -> Snapshot:
    """Write a shard from its parts, if that was not done before."""
    path, work = Path(folder) / name, Path(folder) / WORK
    if path.is_dir():
        with HashIndex.open(path, read_only=True) as whole:
            return Snapshot(name, len(whole))
    # of the plan, not of the folder: storage that is away would be an empty shard
    parts, shard = json.loads((work / PLAN_NAME).read_text())["parts"], name.partition(".")[0]
    with written_aside(path) as aside, HashIndex(Store.create(aside, meta)) as index:
        for part in (each for each in parts if each.startswith(shard)):
            rows = _read_names(work, part)
            with np.load(work / f"{part}.npz") as encoded:
                good = [rows[row] for row in encoded["rows"].tolist()]
                columns = ([row[column] for row in good] for column in range(3))
                index.add_encoded(encoded["codes"], encoded["features"], *columns)
        return seal(index, name)


def images_at_once(encoder: Encoder, memory: int) -> int:
    """How many images the processor should take at once, a power of two."""
    size, channels = encoder.preprocessing.size, encoder.preprocessing.channels
    pixels = np.zeros((_PROBE, size, size, channels), np.uint8)
    encoder.encode_pixels(pixels[:1])
    before = peak_memory()
    encoder.encode_pixels(pixels)
    # where nothing grew, what the network makes was hidden below an earlier peak
    an_image = max((peak_memory() - before) / (_PROBE - 1), 8 * pixels[0].nbytes)
    fitting = max(1, min(MOST_IMAGES, int(memory / an_image)))
    return 1 << (fitting.bit_length() - 1)
