"""A source to a sharded index: Ray Data encodes, and each shard is written by a task of its own.

A task lists the source and writes the names in parts of a thousand, so that no other process holds
a list of all images. Workers take part after part: each is read, encoded and kept as one file. Then
the shards are written from their parts, several at once. A run that was killed keeps every part and
every shard; the next one makes the others.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.data.image import MAX_FILE_BYTES
from hashlens.data.opening import open_source
from hashlens.data.remote import read_remote
from hashlens.distributed.cluster import connect, plain_errors
from hashlens.distributed.snapshots import (
    Manifest,
    Snapshot,
    is_sharded,
    seal,
    snapshot_name,
    write_manifest,
)
from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError, SourceError
from hashlens.files import is_remote, make_folder, path_uri, replace_file, written_aside
from hashlens.index.hash_index import HashIndex
from hashlens.machine import peak_memory
from hashlens.models.encoder import Encoder
from hashlens.types import Skipped

PLAN_NAME, PARTS, NAMES = "plan.json", "parts", "names"
PART_IMAGES = 1024
_MEMORY_USED = 0.5
_MEMORY_UNKNOWN = 2**32
_READS = 32  # objects of a store that a worker reads at once
MOST_IMAGES = 256
_PROBE = 16


class Made(NamedTuple):
    """A new sharded index, and the images that could not be read."""

    manifest: Manifest
    skipped: tuple[Skipped, ...]


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
) -> Made:
    """Encode a source on a Ray cluster into a new sharded index, or go on with a killed run.

    This machine and those that encode must reach ``folder``, ``model`` and ``source``. ``workers``
    is by default one per GPU, or per CPU where there is none; ``batch_size`` as many images as
    memory allows. ``progress`` is called with the images done, and all images.
    """
    encoder = Encoder.load(model)
    _ = encoder.preprocessing  # a model over vectors is refused
    asked = {"source": source, "shards": shards, "fingerprint": encoder.fingerprint}
    _start_or_go_on(folder, asked)
    ray = connect(address)
    plan = json.loads((folder / PLAN_NAME).read_text())
    if "images" not in plan:
        listed = ray.remote(list_names).options(num_cpus=0)
        try:
            with plain_errors(ray):
                images = ray.get(listed.remote(source, str(folder), shards))
        except HashlensError:
            shutil.rmtree(folder)
            raise
        plan["images"] = images
        replace_file(folder / PLAN_NAME, json.dumps(plan))
    done = _images_of(folder, [path.stem for path in (folder / PARTS).glob("*.npz")])
    done += sum(_built(folder, shard) or 0 for shard in range(shards))
    with plain_errors(ray):
        for count in chain([0], _encode_parts(ray, folder, model, workers, batch_size)):
            done += count
            if progress is not None:
                progress(done, plan["images"])
        build = ray.remote(write_shard).options(num_cpus=1)
        ray.get([build.remote(str(folder), str(model.resolve()), shard) for shard in range(shards)])
    return _finish(folder, model, encoder, shards)


def _start_or_go_on(folder: Path, asked: dict[str, Any]) -> None:
    path = folder / PLAN_NAME
    if is_sharded(folder):
        raise IndexStoreError(
            f"{folder}: holds a sharded index already; add to it, or choose another folder"
        )
    if path.is_file():
        kept = json.loads(path.read_text())
        if any(kept.get(name) != value for name, value in asked.items()):
            raise IndexStoreError(
                f"{folder}: an unfinished index of another source, model or number of shards; "
                "remove the folder to start again"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise IndexStoreError(f"{folder}: expected a new or empty folder; choose another name")
    if asked["shards"] < 1:
        raise InvalidInputError(f"shards: expected 1 or more, got {asked['shards']}")
    make_folder(folder / PARTS)
    make_folder(folder / NAMES)
    replace_file(path, json.dumps(asked))


def list_names(source: str, folder: str, shards: int) -> int:
    """Write names, labels and metadata of a source in parts; the number of images.

    A part is called ``SHARD-NUMBER``; it belongs to one shard.
    """
    images = open_source(source)
    total = len(images)
    for left in (Path(folder) / NAMES).iterdir():  # of a run that was killed here
        left.unlink()
    if shards > total:
        raise InvalidInputError(f"shards: expected 1 to {total} (the images), got {shards}")
    bounds = np.linspace(0, total, shards + 1).astype(int).tolist()
    for shard, (start, end) in enumerate(pairwise(bounds)):
        for number, first in enumerate(range(start, end, PART_IMAGES)):
            lines = [
                json.dumps([images.uris[row], images.label_name(row), images.metadata(row)])
                for row in range(first, min(first + PART_IMAGES, end))
            ]
            name = Path(folder) / NAMES / f"{shard:04d}-{number:06d}.jsonl"
            replace_file(name, "\n".join(lines))
    return total


def _read_names(folder: Path, part: str) -> list[tuple[str, str | None, dict[str, Any]]]:
    lines = (folder / NAMES / f"{part}.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def _images_of(folder: Path, parts: Sequence[str]) -> int:
    return sum(len(_read_names(folder, part)) for part in parts)


def _built(folder: Path, shard: int) -> int | None:
    """Images of a shard that was written already, the unreadable ones too; None if it was not."""
    path = folder / f"built-{shard:04d}.json"
    return int(json.loads(path.read_text())["listed"]) if path.is_file() else None


def _encode_parts(
    ray: Any, folder: Path, model: Path, workers: int | None, batch_size: int | None
) -> Iterator[int]:
    """Encode the parts that are not there yet; yields the images of each."""
    import ray.data as ray_data

    kept = {path.stem for path in (folder / PARTS).glob("*.npz")}
    parts = sorted(path.stem for path in (folder / NAMES).glob("*.jsonl"))
    left = [p for p in parts if p not in kept and _built(folder, int(p[:4])) is None]
    if not left:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray_data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = max(1, min(len(left), workers or gpus or int(resources.get("CPU", 1))))
    memory = int(resources.get("memory", _MEMORY_UNKNOWN) * _MEMORY_USED / most)
    data = ray_data.from_items(left, override_num_blocks=len(left)).map_batches(
        EncodePart,
        fn_constructor_args=(
            *(str(folder.resolve()), str(model.resolve())),
            *("cuda" if gpus else "cpu", memory, batch_size),
        ),
        batch_size=1,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=most),
        num_gpus=1 if gpus else None,
    )
    for row in data.iter_rows():
        yield int(row["images"])


class EncodePart:
    """Encodes the images of a part, and keeps the result as one file."""

    def __init__(
        self, folder: str, model: str, device: str, memory: int, batch_size: int | None = None
    ) -> None:
        self._folder = Path(folder)
        self._encoder = Encoder.load(model, device=device)
        if batch_size is None:
            # a GPU says itself when its memory is short
            known = device == "cpu"
            batch_size = images_at_once(self._encoder, memory) if known else MOST_IMAGES
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The part that is named in column item to the number of its images."""
        (part,) = batch["item"]
        uris = [uri for uri, *_ in _read_names(self._folder, str(part))]
        while True:
            try:
                encoded = self._encode(uris)
                break
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or self._batch_size == 1:
                    raise
                self._batch_size //= 2
        path = self._folder / PARTS / f"{part}.npz"

        def save(place: Any) -> None:
            with open(place, "wb") as file:
                np.savez(file, **encoded)

        replace_file(path, save)
        return {"images": [len(uris)]}

    def _encode(self, uris: Sequence[str]) -> dict[str, Any]:
        n, encoder = len(uris), self._encoder
        codes = np.zeros((n, code_bytes(encoder.bits)), np.uint8)
        features = np.zeros((n, encoder.feature_dim), np.float32)
        reasons = np.full(n, "", dtype=object)
        for batch in encoder.encode_batches(_read_ahead(uris), batch_size=self._batch_size):
            codes[batch.positions], features[batch.positions] = batch.codes, batch.features
            for image in batch.skipped:
                reasons[image.position] = image.reason
        return {"codes": codes, "features": features, "reasons": reasons.astype(str)}


def _read_ahead(uris: Sequence[str]) -> Iterator[Any]:
    """Images as an encoder takes them; objects of a store are read many at a time."""
    with ThreadPoolExecutor(_READS) as threads:
        for start in range(0, len(uris), 2 * _READS):
            yield from threads.map(_content, uris[start : start + 2 * _READS])


def _content(uri: str) -> Any:
    if not is_remote(uri) or "#" in uri:
        return uri
    try:
        return read_remote(uri, MAX_FILE_BYTES)
    except SourceError:
        return uri  # the encoder says what is wrong, with the name


def write_shard(folder: str, model: str, shard: int) -> None:
    """Write a shard from its parts, if that was not done before."""
    place = Path(folder)
    if _built(place, shard) is not None:
        return
    parts = sorted(path.stem for path in (place / PARTS).glob(f"{shard:04d}-*.npz"))
    encoder = Encoder.load(model, device="cpu")
    name, skipped, listed = snapshot_name(shard, 1), [], 0
    with written_aside(place / name) as aside:
        index = HashIndex.create(aside, encoder, model=model)
        for part in parts:
            rows = _read_names(place, part)
            listed += len(rows)
            with np.load(place / PARTS / f"{part}.npz") as encoded:
                good = np.flatnonzero(encoded["reasons"] == "").tolist()
                bad = np.flatnonzero(encoded["reasons"] != "").tolist()
                skipped += [(rows[i][0], str(encoded["reasons"][i])) for i in bad]
                index.add_encoded(
                    encoded["codes"][good],
                    encoded["features"][good],
                    [rows[i][0] for i in good],
                    [rows[i][1] for i in good],
                    [rows[i][2] for i in good],
                )
        images = len(index)
        index.close()
        seal(aside)
    built = {"folder": name, "images": images, "listed": listed, "skipped": skipped}
    replace_file(place / f"built-{shard:04d}.json", json.dumps(built))
    for part in parts:
        (place / PARTS / f"{part}.npz").unlink()


def _finish(folder: Path, model: Path, encoder: Encoder, shards: int) -> Made:
    built = [json.loads((folder / f"built-{i:04d}.json").read_text()) for i in range(shards)]
    with HashIndex.open(folder / built[0]["folder"], read_only=True) as first:
        meta = first.store.meta()
    manifest = Manifest(
        meta.bits,
        meta.feature_dim,
        meta.features,
        encoder.fingerprint,
        path_uri(model),
        tuple(Snapshot(one["folder"], one["images"]) for one in built),
    )
    write_manifest(folder, manifest)
    for path in (folder / PARTS, folder / NAMES):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder / PLAN_NAME, *folder.glob("built-*.json")):
        path.unlink()
    skipped = [Skipped(-1, uri, reason) for one in built for uri, reason in one["skipped"]]
    return Made(manifest, tuple(skipped))


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
