"""A source to a sharded index: Ray Data encodes, and each shard is written by a task of its own.

A task lists the source and writes the names in parts of a thousand, so that no other process holds
a list of all images. Workers take part after part: each is read, encoded and kept as one file. Then
the shards are written from their parts, several at once. A run that was killed keeps every part and
every shard; the next one makes the others. All this is in ``encoding``, a folder of the index that
goes when the index is whole: the plan, and of each part the names and what was encoded.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.data.decoding import read_ahead
from hashlens.data.opening import open_source
from hashlens.distributed.cluster import connect, plain_errors
from hashlens.distributed.snapshots import (
    Manifest,
    Snapshot,
    create_shard,
    is_sharded,
    seal,
    snapshot_name,
    write_manifest,
)
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.files import make_folder, path_uri, remove_abandoned, replace_file, written_aside
from hashlens.index.layout import Meta
from hashlens.index.store import require_free
from hashlens.machine import peak_memory
from hashlens.models.encoder import Encoder
from hashlens.types import Skipped

WORK, PLAN_NAME = "encoding", "plan.json"
PART_IMAGES = 1024
_MEMORY_USED = 0.5
_MEMORY_UNKNOWN = 2**32
MOST_IMAGES = 256
_PROBE = 16


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

    Returns the images that could not be read.

    This machine and those that encode must reach ``folder``, ``model`` and ``source``. ``workers``
    is by default one per GPU, or per CPU where there is none; ``batch_size`` as many images as
    memory allows. ``progress`` is called with the images done, and all images.
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
    parts: dict[str, int] = plan["parts"]
    left = [part for part in parts if not _is_done(folder / WORK, part)]
    images = sum(parts.values())
    done = images - sum(parts[part] for part in left)
    meta = Meta(encoder.bits, encoder.feature_dim, "float16", encoder.fingerprint, path_uri(model))
    with plain_errors(ray):
        for part in chain([""], _encode_parts(ray, folder, place, left, workers, batch_size)):
            done += parts.get(part, 0)
            if progress is not None:
                progress(done, images)
        build = ray.remote(write_shard).options(num_cpus=1)
        built = ray.get([build.remote(str(folder), meta, shard) for shard in range(shards)])
    snapshots = (Snapshot(one["folder"], one["images"]) for one in built)
    write_manifest(folder, Manifest(meta, tuple(snapshots)))
    shutil.rmtree(folder / WORK)
    return [Skipped(-1, uri, reason) for one in built for uri, reason in one["skipped"]]


def _unfinished(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The plan of the same index where it was not finished; None where none was begun."""
    path = folder / WORK / PLAN_NAME
    if is_sharded(folder):
        raise IndexStoreError(
            f"{folder}: holds a sharded index already; add to it, or choose another folder"
        )
    if not path.is_file():
        require_free(folder)
        if asked["shards"] < 1:
            raise InvalidInputError(f"shards: expected 1 or more, got {asked['shards']}")
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

    ``parts`` in it are the images of each. A part is called ``SHARD-NUMBER``, after its shard.
    """
    images, shards = open_source(asked["source"]), asked["shards"]
    if shards > len(images):
        raise InvalidInputError(f"shards: expected 1 to {len(images)} (the images), got {shards}")
    plan = {**asked, "parts": {}}
    bounds = np.linspace(0, len(images), shards + 1).astype(int).tolist()
    uris, label, known = images.uris, images.label_name, images.metadata
    place = Path(folder)
    make_folder(place.parent)
    remove_abandoned(place.parent)
    with written_aside(place) as aside:
        (aside / WORK).mkdir(parents=True)
        for shard, (start, end) in enumerate(pairwise(bounds)):
            for number, first in enumerate(range(start, end, PART_IMAGES)):
                rows = range(first, min(first + PART_IMAGES, end))
                lines = [json.dumps([uris[row], label(row), known(row)]) for row in rows]
                part = f"{shard:04d}-{number:06d}"
                (aside / WORK / f"{part}.jsonl").write_text("\n".join(lines))
                plan["parts"][part] = len(rows)
        (aside / WORK / PLAN_NAME).write_text(json.dumps(plan))
    return plan


def _is_done(work: Path, part: str) -> bool:
    return (work / f"{part}.npz").is_file() or _built(work, int(part[:4])).is_file()


def _built(work: Path, shard: int) -> Path:
    """What a shard that is written says of itself."""
    return work / f"built-{shard:04d}.json"


def _read_names(work: Path, part: str) -> list[tuple[str, str | None, dict[str, Any]]]:
    lines = (work / f"{part}.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def _encode_parts(
    ray: Any,
    folder: Path,
    model: str,
    parts: list[str],
    workers: int | None,
    batch_size: int | None,
) -> Iterator[str]:
    """Encode parts; yields those that are done."""
    if not parts:
        return
    import ray.data as ray_data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray_data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = max(1, min(len(parts), workers or gpus or int(resources.get("CPU", 1))))
    memory = int(resources.get("memory", _MEMORY_UNKNOWN) * _MEMORY_USED / most)
    data = ray_data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        EncodePart,
        fn_constructor_args=(str(folder), model, "cuda" if gpus else "cpu", memory, batch_size),
        batch_size=1,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=most),
        num_gpus=1 if gpus else None,
    )
    for row in data.iter_rows():
        yield str(row["item"])


class EncodePart:
    """Encodes the images of a part, and keeps the result as one file."""

    def __init__(
        self, folder: str, model: str, device: str, memory: int, batch_size: int | None = None
    ) -> None:
        self._work = Path(folder) / WORK
        self._encoder = Encoder.load(model, device=device)
        if batch_size is None:  # a GPU says itself when its memory is short
            is_cpu = device == "cpu"
            batch_size = images_at_once(self._encoder, memory) if is_cpu else MOST_IMAGES
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the part that is named in column item."""
        (part,) = map(str, batch["item"])
        uris = [uri for uri, *_ in _read_names(self._work, part)]
        while True:
            try:
                encoded = self._encode(uris)
                break
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or self._batch_size == 1:
                    raise
                self._batch_size //= 2
        replace_file(self._work / f"{part}.npz", lambda aside: np.savez(aside, **encoded))
        return batch

    def _encode(self, uris: list[str]) -> dict[str, Any]:
        n, encoder = len(uris), self._encoder
        codes = np.zeros((n, code_bytes(encoder.bits)), np.uint8)
        features = np.zeros((n, encoder.feature_dim), np.float32)
        reasons = np.full(n, "", dtype=object)
        for batch in encoder.encode_batches(read_ahead(uris), batch_size=self._batch_size):
            codes[batch.positions], features[batch.positions] = batch.codes, batch.features
            for image in batch.skipped:
                reasons[image.position] = image.reason
        return {"codes": codes, "features": features, "reasons": reasons.astype(str)}


def write_shard(folder: str, meta: Meta, shard: int) -> dict[str, Any]:
    """Write a shard from its parts, if that was not done before; what was made of them."""
    place, work = Path(folder), Path(folder) / WORK
    told = _built(work, shard)
    if told.is_file():
        return dict(json.loads(told.read_text()))
    parts = sorted(work.glob(f"{shard:04d}-*.npz"))
    name, skipped = snapshot_name(shard, 1), []
    with written_aside(place / name) as aside, create_shard(aside, meta) as index:
        for part in parts:
            rows = _read_names(work, part.stem)
            with np.load(part) as encoded:
                reasons = encoded["reasons"].tolist()
                good = [i for i, reason in enumerate(reasons) if not reason]
                skipped += [(rows[i][0], why) for i, why in enumerate(reasons) if why]
                columns = zip(*(rows[i] for i in good), strict=True) if good else [()] * 3
                index.add_encoded(encoded["codes"][good], encoded["features"][good], *columns)
        built = {**asdict(seal(index, name)), "skipped": skipped}
    replace_file(told, json.dumps(built))
    for part in parts:
        part.unlink()
    return built


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
