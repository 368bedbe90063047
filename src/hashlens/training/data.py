"""What a run reads: pixels or features by row, the split, and batches in a seeded order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from hashlens.data.decoding import decode_source, iter_decoded
from hashlens.data.labels import class_counts, rows_to_learn, split_validation
from hashlens.data.preprocessing import Preprocessing, VectorInput
from hashlens.data.source import Source, VectorStore
from hashlens.errors import InvalidInputError, SourceError, few_of
from hashlens.machine import available_memory, has_cuda
from hashlens.report.progress import ProgressBar, say
from hashlens.training.config import TrainingConfig
from hashlens.training.folder import read_state, write_state
from hashlens.types import Skipped

FEATURES = "features.safetensors"
DRAWS, MORE_DRAWS = 5, 9
"""Random numbers that an image gets for its augmentation; those of `more` are drawn last."""
_CHUNK, _VECTORS = 256, 4096

Rows = NDArray[np.int64]
Targets = NDArray[np.int64] | NDArray[np.bool_]


class Inputs(NamedTuple):
    """The images of a run."""

    pixels: Pixels  # images, or their features, by row
    rows: Rows  # (n,): position of each in the source
    skipped: Sequence[Skipped]  # images that could not be read so far
    twins: Rows  # (n,): equal for images of equal pixels; -1 where this is not known


def decoded_inputs(
    source: Source, preprocessing: Preprocessing, *, strict: bool, console: Console
) -> Inputs:
    """The images to learn from, decoded into memory if they fit, else when they are needed."""
    rows = rows_to_learn(source)
    needed = len(rows) * preprocessing.size**2 * preprocessing.channels
    free = available_memory()  # half of it may be taken; 4 GiB where it is not known
    if needed > (budget := 4 * 2**30 if free is None else free // 2):
        say(
            console,
            f"{len(rows)} images take {needed / 2**30:.1f} GiB decoded, more than half of the free "
            f"memory ({budget / 2**30:.1f} GiB): they are decoded again in every epoch",
        )
        streamed = StreamedPixels(source, rows, preprocessing, strict=strict)
        return Inputs(streamed, rows, streamed.skipped, np.full(len(rows), -1))
    with ProgressBar("decoding", len(rows), console=console) as progress:
        decoded = decode_source(source, preprocessing, rows, strict=strict, progress=progress)
    if len(decoded.positions) == 0:
        raise SourceError(f"{source.spec}: expected images, none of {len(rows)} could be read")
    held = HeldPixels(torch.from_numpy(decoded.pixels))
    return Inputs(held, rows[decoded.positions], decoded.skipped, _twins(_digests(decoded.pixels)))


def feature_inputs(
    source: Source,
    preprocessing: Preprocessing | VectorInput,
    backbone: nn.Module,
    cache: Path | None,
    *,
    rows: Rows | None = None,
    strict: bool,
    console: Console,
    write: bool = True,
) -> Inputs:
    """Features of the images to learn from, or of ``rows``, computed once and kept in a cache file.

    Ready vectors are the features themselves, and need no cache.
    """
    wanted = rows_to_learn(source) if rows is None else rows
    if isinstance(preprocessing, VectorInput):
        return _vector_inputs(source, preprocessing, backbone, wanted, strict, console)
    key = _key(source, wanted, preprocessing, backbone)
    if cache is not None and cache.is_file() and (kept := read_state(cache))["key"] == key:
        skipped = [Skipped(*one) for one in kept["skipped"]]
        found = kept["rows"].numpy()
        return Inputs(HeldPixels(kept["features"]), found, skipped, kept["twins"].numpy())
    device = torch.device("cuda" if has_cuda() else "cpu")
    backbone = backbone.to(device).to(memory_format=torch.channels_last).eval()
    parts, readable, twins, skipped = [], [wanted[:0]], [], []
    bar = ProgressBar("features", len(wanted), console=console)
    stream = iter_decoded(source.subset(wanted).inputs, preprocessing, _CHUNK, strict=strict)
    with bar, torch.inference_mode():
        for images in stream:  # the next are decoded while the network runs
            if len(images.pixels):
                values = torch.from_numpy(preprocessing.normalise(images.pixels))
                values = values.to(device, memory_format=torch.channels_last)
                parts.append(backbone(values).float().cpu())
            readable.append(wanted[images.positions])
            skipped += [one._replace(position=int(wanted[one.position])) for one in images.skipped]
            twins += _digests(images.pixels)
            bar(len(images.positions) + len(images.skipped))
    backbone.cpu()
    if not parts:
        raise SourceError(f"{source.spec}: expected images, none of {len(wanted)} could be read")
    found, features, same = np.concatenate(readable), torch.cat(parts), _twins(twins)
    if cache is not None and write:
        write_state(
            {
                "key": key,
                "features": features,
                "rows": torch.from_numpy(found),
                "twins": torch.from_numpy(same),
                "skipped": [tuple(one) for one in skipped],
            },
            cache,
        )
    return Inputs(HeldPixels(features), found, skipped, same)


def _vector_inputs(
    source: Source,
    taken: VectorInput,
    backbone: nn.Module,
    wanted: Rows,
    strict: bool,
    console: Console,
) -> Inputs:
    """Vectors as features that are read when needed.

    All are read once before, to leave out what cannot be encoded and to know equal ones.
    """
    store = source.vectors
    if store is None:
        raise SourceError(f"{source.spec}: expected vectors, got images")
    good, digests, skipped = np.ones(len(wanted), np.bool_), [], []
    with ProgressBar("reading", len(wanted), unit="vectors", console=console) as progress:
        for start in range(0, len(wanted), _VECTORS):
            part = wanted[start : start + _VECTORS]
            vectors = store.gather(source.rows[part])
            for row, reason in taken.faults(vectors).items():
                good[start + row] = False
                position = int(part[row])
                skipped.append(Skipped(position, source.uris[position], reason))
            digests += _digests(vectors)
            progress(len(part))
    if strict and skipped:
        first = skipped[0]
        raise InvalidInputError(
            f"{source.spec}: row {first.position}: {first.reason}; leave it out"
        )
    found = wanted[good]
    if not len(found):
        raise SourceError(f"{source.spec}: expected vectors, none of {len(wanted)} can be used")
    held = VectorRows(store, source.rows[found], backbone)
    return Inputs(held, found, skipped, _twins(digests)[good])


class Split(NamedTuple):
    """Rows of the inputs."""

    training: Rows  # no row is in both parts
    validation: Rows  # without images that are known to be copies of a training image
    copies: int  # images that left validation because they were such copies


def split_rows(labels: Rows, twins: Rows, config: TrainingConfig) -> Split:
    """Hold out the validation images."""
    assert config.validation is not None  # a resolved configuration names a share
    # Without labels all are -1: alike, so that a share of all is held out.
    training, validation = split_validation(np.maximum(labels, 0), config.validation, config.seed)
    copies = (twins[validation] >= 0) & np.isin(twins[validation], twins[training])
    validation = validation[~copies]
    if len(training) < 2 or len(validation) < 2:
        raise SourceError(
            f"expected at least 2 different images for validation, got {len(validation)} of "
            f"{len(labels)}: add images, or raise the share held out (validation, now "
            f"{config.validation:g})"
        )
    return Split(training, validation, int(copies.sum()))


def split_notes(
    source: Source, inputs: Inputs, split: Split, lost: Sequence[str], bits: int
) -> list[str]:
    """What a user should know about the images that are used, and those that are not."""
    notes = list(source.notes)
    unlabelled = len(source) - len(rows_to_learn(source))
    if unlabelled:
        notes.append(f"{unlabelled} of {len(source)} images have no label and are left out")
    if inputs.skipped:
        notes.append(f"{len(inputs.skipped)} images could not be read and are left out")
    if lost:
        notes.append(
            f"{len(lost)} classes are dropped, none of their images could be read: {few_of(lost)}"
        )
    counts = class_counts(source.subset(inputs.rows))
    if single := [source.classes[i] for i in np.flatnonzero(counts == 1)]:
        notes.append(
            f"{len(single)} classes have one image each, which is in training and not in "
            f"validation: {few_of(single)}"
        )
    if (classes := int((counts > 0).sum())) > 2**bits:
        notes.append(
            f"{classes} classes share the {2**bits} codes of {bits} bits, so codes cannot tell "
            "them all apart; use more --bits"
        )
    if split.copies:
        notes.append(
            f"{split.copies} validation images are exact copies of training images: they are left "
            "out of validation, where they would flatter the model"
        )
    return notes


def say_what_is_left_out(
    console: Console, skipped: Sequence[Skipped], notes: Sequence[str]
) -> None:
    """Print the images that could not be read, and the notes, one a line."""
    for one in skipped:
        say(console, f"skipped {one.name}: {one.reason}")
    for note in notes:
        say(console, f"note: {note}")


class Batch(NamedTuple):
    """Some training or validation images."""

    inputs: torch.Tensor  # (b, size, size, channels) uint8 pixels, or (b, d) float32 features
    targets: torch.Tensor  # (b,) int64 classes, or (b, classes) bool labels
    # (b, DRAWS + MORE_DRAWS) in [0, 1), the first 0 or 0.5 in turns; validation: none
    draws: torch.Tensor
    rows: torch.Tensor  # (b,): which images these are


class TrainingBatches:
    """One pass over the training images, in an order that seed and epoch alone decide.

    Order and augmentation are drawn for the whole batch and then divided, so that several
    processes together see what one would. A last batch that is not full is left out.
    """

    def __init__(
        self,
        inputs: Pixels,
        targets: Targets,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        weights: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._inputs, self._targets, self._rows = inputs, torch.from_numpy(targets), rows
        self._batch_size = min(batch_size, len(rows))
        self._seed, self._epoch, self._weights = seed, epoch, weights
        self._rank, self._world = rank, world
        _check_share("images in a batch", self._batch_size, world)

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        # What layers draw themselves, such as dropout, is seeded as well.
        torch.manual_seed(self._seed + 1_000_003 * epoch + self._rank)
        generator = np.random.default_rng((self._seed, epoch))
        if self._weights is None:
            order = generator.permutation(len(self._rows))
        else:
            order = generator.choice(len(self._rows), len(self._rows), p=self._weights)
        draws = np.concatenate(
            [generator.random((len(order), n), dtype=np.float32) for n in (DRAWS, MORE_DRAWS)],
            axis=1,
        )
        # Every image is mirrored every other time: an epoch of half, then the other half.
        side = np.random.default_rng(self._seed).integers(0, 2, len(self._rows))
        draws[:, 0] = 0.5 * ((side[order] + epoch) % 2)
        slices = [
            slice(start + self._rank, start + self._batch_size, self._world)
            for start in range(0, len(self) * self._batch_size, self._batch_size)
        ]
        ahead = ThreadPoolExecutor(1, "batches")
        try:
            coming = ahead.submit(self._batch, order[slices[0]], draws[slices[0]])
            for following in [*slices[1:], None]:
                batch = coming.result()
                if following is not None:
                    coming = ahead.submit(self._batch, order[following], draws[following])
                yield batch
        finally:  # often run by the garbage collector, where waiting would swallow a Ctrl-C
            ahead.shutdown(wait=False)

    def _batch(self, order: Rows, draws: NDArray[np.float32]) -> Batch:
        rows = self._rows[order]
        batch = _readable_batch(self._inputs, self._targets, rows, torch.from_numpy(draws))
        # Of pinned memory a GPU takes the next batch while it still works on this one.
        return Batch(*(part.pin_memory() for part in batch)) if has_cuda() else batch


class ValidationBatches:
    """Every validation image once, divided over the processes."""

    def __init__(
        self,
        inputs: Pixels,
        targets: Targets,
        rows: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._inputs, self._targets = inputs, torch.from_numpy(targets)
        self._rows, self._batch_size = rows[rank::world], batch_size
        _check_share("validation images", len(rows), world)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            rows = self._rows[start : start + self._batch_size]
            yield _readable_batch(self._inputs, self._targets, rows, torch.zeros(len(rows), 0))


def _check_share(what: str, images: int, world: int) -> None:
    if images < world:
        raise InvalidInputError(
            f"expected at least {world} {what}, one for each process, got {images}; use fewer "
            "devices, a larger batch size, or more images"
        )


def _readable_batch(
    inputs: Pixels, targets: torch.Tensor, rows: Rows, draws: torch.Tensor
) -> Batch:
    chosen, readable = inputs.gather(rows)
    places = torch.from_numpy(rows)
    batch = Batch(chosen, targets[places], draws, places)
    return batch if bool(readable.all()) else Batch(*(part[readable] for part in batch))


class Pixels(Protocol):
    """Images by row, decoded and resized; or their features, which are used alike."""

    def gather(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows, and which of them could be read."""
        ...


class HeldPixels:
    """Images, or features, that are held in memory."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def gather(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows; all could be read."""
        return self._values[torch.from_numpy(rows)], torch.ones(len(rows), dtype=torch.bool)


class VectorRows:
    """Vectors of a store, of unit length where the metric wants it."""

    def __init__(self, store: VectorStore, rows: Rows, backbone: nn.Module) -> None:
        self._store, self._rows, self._backbone = store, rows, backbone

    @torch.inference_mode()
    def gather(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows; all can be used."""
        vectors = torch.from_numpy(self._store.gather(self._rows[rows]))
        return self._backbone(vectors).clone(), torch.ones(len(rows), dtype=torch.bool)


class StreamedPixels:
    """Images that threads decode each time they are needed."""

    def __init__(
        self, source: Source, rows: Rows, preprocessing: Preprocessing, *, strict: bool = False
    ) -> None:
        self._source, self._rows, self._preprocessing = source, rows, preprocessing
        self._strict = strict
        self.skipped: list[Skipped] = []  # each once; grows while images are read
        self._unreadable: set[int] = set()

    def gather(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows, and which of them could be read."""
        found = self._rows[rows]
        decoded = decode_source(self._source, self._preprocessing, found, strict=self._strict)
        for one in decoded.skipped:
            one = one._replace(position=int(found[one.position]))
            if one.position not in self._unreadable:
                self._unreadable.add(one.position)
                self.skipped.append(one)
        pixels = np.zeros((len(rows), *decoded.pixels.shape[1:]), np.uint8)
        pixels[decoded.positions] = decoded.pixels
        readable = np.isin(np.arange(len(rows)), decoded.positions)
        return torch.from_numpy(pixels), torch.from_numpy(readable)


def _key(source: Source, rows: Rows, preprocessing: Preprocessing, backbone: nn.Module) -> str:
    """Digest of everything that decides features, but the contents of the images."""
    digest = hashlib.blake2b(repr((source.spec, preprocessing.to_dict())).encode())
    digest.update(np.ascontiguousarray(source.rows[rows]).tobytes())
    for row in rows.tolist():
        digest.update(f"{source.uris[row]}\n".encode("utf-8", "surrogateescape"))
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digests(pixels: NDArray[Any]) -> list[bytes]:
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in pixels]


def _twins(digests: list[bytes]) -> Rows:
    return np.unique(digests, return_inverse=True)[1]
