"""A source to a sharded index: Ray Data reads, decodes and encodes; each shard is an index.

Rows of the source go to the shards in contiguous parts, so ids are those that one index of the
same images would give. A shard is complete once its file ``complete.json`` stands; a run that was
killed keeps complete shards and makes the others again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.data.sources import open_source
from hashlens.distributed.catalogue import Catalogue, IdRange, Shard, is_sharded, write_catalogue
from hashlens.distributed.cluster import connect
from hashlens.distributed.locations import is_remote, list_remote, read_remote
from hashlens.errors import IndexStoreError, InvalidInputError, SourceError
from hashlens.index.index import HashIndex
from hashlens.models.encoder import Encoder
from hashlens.protocols import ImageInput

PLAN_NAME = "plan.json"
COMPLETE_NAME = "complete.json"
_COMMIT_ROWS = 4096


@dataclass(frozen=True)
class Images:
    """URIs and labels of all images to encode; a label is None where there is none."""

    spec: str
    uris: Sequence[str]
    labels: Sequence[str | None]


def open_images(spec: str) -> Images:
    """Images of a source (``data.sources.open_source``) or under an object storage prefix.

    Raises
    ------
    SourceError
        If there are none.
    """
    if is_remote(spec):
        listed = list_remote(spec)
        return Images(spec, [uri for uri, _ in listed], [label for _, label in listed])
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
    gpus_per_worker: float = 0,
    batch_size: int = 64,
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
        Encoding actors; by default one a CPU of the cluster, or one a GPU.
    gpus_per_worker : float
        Share of a GPU that each actor takes.
    batch_size : int
        Images in each run of the network.
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
    }
    _start_or_go_on(folder, plan)
    bounds = np.linspace(0, len(images.uris), shards + 1).astype(int)
    ray = connect(address)
    made = []
    for position in range(shards):
        part = slice(bounds[position], bounds[position + 1])
        shard_folder = folder / f"shard-{position:04d}"
        skipped = _completed(shard_folder)
        if skipped is None:
            batches = _encoded(
                ray, model, encoder, images.uris[part], workers, gpus_per_worker, batch_size
            )
            skipped = _write_shard(shard_folder, encoder, model, images, part, batches, progress)
        elif progress is not None:
            progress(part.stop - part.start)
        made.append((shard_folder, skipped))
    catalogue = _catalogue(encoder, model, made)
    write_catalogue(folder, catalogue)
    (folder / PLAN_NAME).unlink()
    return catalogue


def _start_or_go_on(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN_NAME
    if is_sharded(folder):
        raise IndexStoreError(
            f"{folder}: a sharded index stands here; add to it, or choose another"
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
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan))


def _completed(shard_folder: Path) -> list[tuple[str, str]] | None:
    """Skipped images of a complete shard; None, and the folder gone, if it is not complete."""
    try:
        content = json.loads((shard_folder / COMPLETE_NAME).read_text())
        return [(uri, reason) for uri, reason in content["skipped"]]
    except (FileNotFoundError, ValueError, KeyError):
        shutil.rmtree(shard_folder, ignore_errors=True)
        return None


class EncodeBatches:
    """Ray Data's actor: a batch of URIs to codes, features, and reasons where one failed."""

    def __init__(self, model: str, device: str | None) -> None:
        self._encoder = Encoder.load(model, device=device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns position and uri to position, codes, features and reason ("" if read)."""
        n = len(batch["uri"])
        codes = np.zeros((n, code_bytes(self._encoder.bits)), np.uint8)
        features = np.zeros((n, self._encoder.feature_dim), np.float32)
        reasons = np.full(n, "", dtype=object)
        images: list[ImageInput] = []
        rows = []
        for row, uri in enumerate(batch["uri"]):
            try:
                images.append(read_remote(uri) if is_remote(uri) else uri)
                rows.append(row)
            except SourceError as error:
                reasons[row] = str(error)
        for encoded in self._encoder.encode_batches(images, batch_size=max(n, 1)):
            at = np.array(rows)[encoded.positions]
            codes[at], features[at] = encoded.codes, encoded.features
            for image in encoded.skipped:
                reasons[rows[image.position]] = image.reason
        return {
            "position": batch["position"],
            "codes": codes,
            "features": features,
            "reason": reasons.astype(str),
        }


def _encoded(
    ray: Any,
    model: Path,
    encoder: Encoder,
    uris: Sequence[str],
    workers: int | None,
    gpus: float,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Encoded batches in the order of the source."""
    import ray.data as ray_data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray_data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    most = workers or int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1))
    blocks = max(1, min(len(uris) // batch_size, 4 * max(most, 1)))
    rows = [{"position": i, "uri": uri} for i, uri in enumerate(uris)]
    data = ray_data.from_items(rows, override_num_blocks=blocks).map_batches(
        EncodeBatches,
        fn_constructor_args=(str(model.resolve()), "cuda" if gpus else "cpu"),
        batch_size=batch_size,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=max(most, 1)),
        num_gpus=gpus or None,
    )
    batches: Any = data.iter_batches(batch_size=_COMMIT_ROWS, batch_format="numpy")
    yield from batches


def _write_shard(
    shard_folder: Path,
    encoder: Encoder,
    model: Path,
    images: Images,
    part: slice,
    batches: Iterator[dict[str, Any]],
    progress: Callable[[int], None] | None,
) -> list[tuple[str, str]]:
    index = HashIndex.create(shard_folder, encoder, model=str(model.resolve()))
    skipped: list[tuple[str, str]] = []
    for batch in batches:
        reasons = batch["reason"]
        good = np.flatnonzero(reasons == "")
        at = batch["position"] + part.start
        index.add_encoded(
            np.ascontiguousarray(batch["codes"][good]),
            np.ascontiguousarray(batch["features"][good]),
            [images.uris[int(i)] for i in at[good]],
            labels=[images.labels[int(i)] for i in at[good]],
        )
        skipped += [
            (images.uris[int(at[i])], str(reasons[i])) for i in np.flatnonzero(reasons != "")
        ]
        if progress is not None:
            progress(len(at))
    index.close()
    aside = shard_folder / f"{COMPLETE_NAME}.new"
    aside.write_text(json.dumps({"skipped": skipped}))
    aside.rename(shard_folder / COMPLETE_NAME)
    return skipped


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
