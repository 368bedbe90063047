"""A source to a sharded index: Ray Data reads, decodes and encodes; each shard is an index.

Rows of the source go to the shards in contiguous parts, so ids are those that one index of the
same images would give. A shard is complete once it has a file ``complete.json``; a run that was
killed keeps complete shards and makes the others again.
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.data.opening import open_source
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, is_sharded, write_catalogue
from hashlens.distributed.cluster import connect
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.files import make_folder, replace_file
from hashlens.index.hash_index import HashIndex
from hashlens.machine import peak_memory
from hashlens.models.encoder import Encoder

PLAN_NAME = "plan.json"
COMPLETE_NAME = "complete.json"
_COMMIT_ROWS = 4096
_MEMORY_USED = 0.5
_MEMORY_UNKNOWN = 2**32
MOST_IMAGES = 256
_PROBE = 16


@dataclass(frozen=True)
class Images:
    """URIs and labels of all images to encode; a label is None where there is none."""

    spec: str
    uris: Sequence[str]
    labels: Sequence[str | None]


def open_images(spec: str) -> Images:
    """Images of a source; see ``open_source``."""
    source = open_source(spec)
    return Images(spec, source.uris, [source.label_name(i) for i in range(len(source))])


def create_sharded(
    folder: Path,
    model: Path,
    images: Images,
    *,
    shards: int,
    address: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Catalogue:
    """Encode images on a Ray cluster into a new sharded index, or go on with a killed run.

    Parameters
    ----------
    folder : Path
        The new index's folder; the machine that runs this and those that search must reach it.
    model : Path
        Model directory or exported file, readable on every node.
    images : Images
        What to encode.
    shards : int
        Number of shards.
    address : str, optional
        Ray's address; see :func:`hashlens.distributed.cluster.connect`.
    workers : int, optional
        Encoding actors; by default one per GPU of the cluster, or one per CPU where it has none.
    batch_size : int, optional
        Images in each run of the network; by default as many as memory allows.
    progress : callable, optional
        Called with the number of images done since the last call.

    Returns
    -------
    Catalogue
        Its shards list the images that could not be read.

    Raises
    ------
    InvalidInputError
        If there are fewer images than shards.
    IndexStoreError
        If the folder holds an index already, or an unfinished one of other images.
    """
    if not 1 <= shards <= len(images.uris):
        raise InvalidInputError(
            f"shards: expected 1 to {len(images.uris)} (the images), got {shards}"
        )
    encoder = Encoder.load(model)
    plan = {
        "source": images.spec,
        "images": len(images.uris),
        "shards": shards,
        "fingerprint": encoder.fingerprint,
        "uris": zlib.crc32("\n".join(images.uris).encode("utf-8", "surrogateescape")),
    }
    _start_or_go_on(folder, plan)
    bounds = np.linspace(0, len(images.uris), shards + 1).astype(int).tolist()
    parts = {folder / f"shard-{i:04d}": range(*bounds[i : i + 2]) for i in range(shards)}
    left = {}
    for shard_folder, part in parts.items():
        if _skipped(shard_folder) is None:
            shutil.rmtree(shard_folder, ignore_errors=True)
            left[shard_folder] = part
        elif progress is not None:
            progress(len(part))
    uris = [images.uris[i] for part in left.values() for i in part]
    if uris:
        batches = _encoded(connect(address), model, uris, workers, batch_size)
        _write_shards(left, encoder, model, images, batches, progress)
    made = [(shard_folder, _skipped(shard_folder) or []) for shard_folder in parts]
    catalogue = _catalogue(encoder, model, made)
    write_catalogue(folder, catalogue)
    (folder / PLAN_NAME).unlink()
    return catalogue


def _start_or_go_on(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN_NAME
    if is_sharded(folder):
        raise IndexStoreError(
            f"{folder}: holds a sharded index already; add to it, or choose another folder"
        )
    if path.is_file():
        if json.loads(path.read_text()) != plan:
            raise IndexStoreError(
                f"{folder}: an unfinished index of other images, shards or another model; "
                "remove the folder to start again"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise IndexStoreError(f"{folder}: expected a new or empty folder; choose another name")
    make_folder(folder)
    replace_file(path, json.dumps(plan))


def _skipped(shard_folder: Path) -> list[tuple[str, str]] | None:
    """Images that could not be read, of a complete shard; None if it is not complete."""
    try:
        content = json.loads((shard_folder / COMPLETE_NAME).read_text())
        return [(uri, reason) for uri, reason in content["skipped"]]
    except (FileNotFoundError, ValueError, KeyError, RecursionError):
        return None


def _encoded(
    ray: Any,
    model: Path,
    uris: Sequence[str],
    workers: int | None,
    batch_size: int | None,
) -> Iterator[dict[str, Any]]:
    """Encoded batches of all the images, in order."""
    import pyarrow
    import ray.data as ray_data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray_data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = max(1, workers or gpus or int(resources.get("CPU", 1)))
    memory = int(resources.get("memory", _MEMORY_UNKNOWN) * _MEMORY_USED / most)
    block = max(1, min(batch_size or MOST_IMAGES, len(uris) // (4 * most)))
    rows = pyarrow.table({"row": np.arange(len(uris)), "uri": pyarrow.array(uris)})
    blocks = [rows.slice(start, block) for start in range(0, len(uris), block)]
    data = ray_data.from_arrow(blocks).map_batches(
        EncodeBatches,
        fn_constructor_args=(str(model.resolve()), "cuda" if gpus else "cpu", memory, batch_size),
        batch_size=block,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=most),
        num_gpus=1 if gpus else None,
    )
    batches: Any = data.iter_batches(batch_size=_COMMIT_ROWS, batch_format="numpy")
    yield from batches


def _write_shards(
    folders: Mapping[Path, range],
    encoder: Encoder,
    model: Path,
    images: Images,
    batches: Iterator[dict[str, Any]],
    progress: Callable[[int], None] | None,
) -> None:
    """Write encoded batches into one shard after another."""
    waiting: list[dict[str, Any]] = []
    for folder, part in folders.items():
        index = HashIndex.create(folder, encoder, model=str(model.resolve()))
        skipped: list[tuple[str, str]] = []
        at = part.start
        while at < part.stop:
            batch = waiting.pop() if waiting else next(batches)
            room = part.stop - at
            if len(batch["row"]) > room:
                waiting.append({name: column[room:] for name, column in batch.items()})
                batch = {name: column[:room] for name, column in batch.items()}
            skipped += _add(index, images, at, batch)
            at += len(batch["row"])
            if progress is not None:
                progress(len(batch["row"]))
        index.close()
        replace_file(folder / COMPLETE_NAME, json.dumps({"skipped": skipped}))


def _add(
    index: HashIndex, images: Images, start: int, batch: dict[str, Any]
) -> list[tuple[str, str]]:
    """Add the images from ``start`` on in one commit; returns those that could not be read."""
    reasons = batch["reason"]
    good = np.flatnonzero(reasons == "")
    index.add_encoded(
        np.ascontiguousarray(batch["codes"][good]),
        np.ascontiguousarray(batch["features"][good]),
        [images.uris[start + int(i)] for i in good],
        labels=[images.labels[start + int(i)] for i in good],
    )
    bad = np.flatnonzero(reasons != "").tolist()
    return [(images.uris[start + i], str(reasons[i])) for i in bad]


def _catalogue(
    encoder: Encoder, model: Path, made: list[tuple[Path, list[tuple[str, str]]]]
) -> Catalogue:
    shards, start = [], 0
    for shard_folder, skipped in made:
        count = len(HashIndex.open(shard_folder, read_only=True))
        ranges = (IdRange(start, 0, count),) if count else ()
        shards.append(Shard(shard_folder.name, ranges, tuple(skipped)))
        start += count
    return Catalogue(
        encoder.bits, encoder.feature_dim, encoder.fingerprint, str(model.resolve()), tuple(shards)
    )


class EncodeBatches:
    """A batch of URIs to codes, features, and reasons where an image could not be read."""

    def __init__(self, model: str, device: str, memory: int, batch_size: int | None = None) -> None:
        self._encoder = Encoder.load(model, device=device)
        if batch_size is None:
            # a GPU says itself when its memory is short
            known = device == "cpu"
            batch_size = images_at_once(self._encoder, memory) if known else MOST_IMAGES
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns row and uri to row, codes, features and reason ("" if read)."""
        while True:
            try:
                return self._encode(batch)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or self._batch_size == 1:
                    raise
                self._batch_size //= 2

    def _encode(self, batch: dict[str, Any]) -> dict[str, Any]:
        n = len(batch["uri"])
        codes = np.zeros((n, code_bytes(self._encoder.bits)), np.uint8)
        features = np.zeros((n, self._encoder.feature_dim), np.float32)
        reasons = np.full(n, "", dtype=object)
        images = [str(uri) for uri in batch["uri"]]
        for encoded in self._encoder.encode_batches(images, batch_size=self._batch_size):
            at = encoded.positions
            codes[at], features[at] = encoded.codes, encoded.features
            for image in encoded.skipped:
                reasons[image.position] = image.reason
        return {
            "row": batch["row"],
            "codes": codes,
            "features": features,
            "reason": reasons.astype(str),
        }


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
