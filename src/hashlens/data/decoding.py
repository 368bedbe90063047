"""Many images: decoded in threads (Pillow lets go of the interpreter), in order, in arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, pairwise
from threading import Semaphore
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlens.data.image import decode, image_name
from hashlens.data.opening import fetch
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.errors import ImageError, InvalidInputError
from hashlens.files import FileState, is_remote
from hashlens.machine import cores
from hashlens.types import ImageInput, Skipped

_CHUNK = 32  # images a thread takes at once
_BATCHES_AHEAD = 2
_READS = 32  # files elsewhere that are read at once


class DecodedImages(NamedTuple):
    """Pixels (m, size, size, channels) of the images that could be read, ascending by position.

    ``files`` says how the file of each looked when it was read; it is empty but for a stream.
    """

    pixels: NDArray[np.uint8]
    positions: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    files: tuple[FileState | None, ...] = ()


def decode_source(
    source: Source,
    preprocessing: Preprocessing,
    rows: ArrayLike | None = None,
    *,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> DecodedImages:
    """Decode a source, or some rows of it, into one array.

    ``progress`` is called with the number of images done since the last call.
    """
    chosen = source if rows is None else source.subset(rows)
    side, channels = preprocessing.size, preprocessing.channels
    pixels = np.empty((len(chosen), side, side, channels), np.uint8)
    skipped: list[Skipped] = []
    for batch in iter_decoded(chosen.uris, preprocessing, 8 * _CHUNK, strict=strict):
        pixels[batch.positions] = batch.pixels
        skipped += batch.skipped
        if progress is not None:
            progress(len(batch.positions) + len(batch.skipped))
    return _without(pixels, skipped)


def iter_decoded(
    images: Iterable[ImageInput],
    preprocessing: Preprocessing,
    batch_size: int = 64,
    *,
    strict: bool = False,
) -> Iterator[DecodedImages]:
    """Decode a stream in batches, a few batches ahead of who takes them."""
    if batch_size < 1:
        raise InvalidInputError(f"batch_size: expected 1 or more, got {batch_size}")
    stream = iter(images)
    head = list(islice(stream, 1))  # tells where all are; more threads would cost what is near
    elsewhere = any(isinstance(image, str) and is_remote(image) for image in head)
    pool, decoders = ThreadPoolExecutor(_READS if elsewhere else cores()), Semaphore(cores())
    stream = chain(head, stream)
    waiting: deque[Callable[[], DecodedImages]] = deque()
    start = 0
    try:
        while True:
            while len(waiting) <= _BATCHES_AHEAD:
                items = list(islice(stream, batch_size))
                if not items:
                    break
                waiting.append(_begin(pool, decoders, items, start, preprocessing, strict))
                start += len(items)
            if not waiting:
                return
            yield waiting.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor,
    decoders: Semaphore,
    items: list[ImageInput],
    start: int,
    preprocessing: Preprocessing,
    strict: bool,
) -> Callable[[], DecodedImages]:
    """Give one batch to the threads; what is returned waits for it."""
    side, channels, hint = preprocessing.size, preprocessing.channels, preprocessing.size_hint
    pixels = np.empty((len(items), side, side, channels), np.uint8)
    files: list[FileState | None] = [None] * len(items)

    def work(low: int, high: int) -> list[Skipped]:
        failed = []
        for i in range(low, high):
            name = image_name(items[i], start + i)
            try:
                raw, files[i] = fetch(items[i])
                with decoders:
                    picture = decode(raw, name, size_hint=hint, strict=strict)
                    pixels[i] = preprocessing.pixels(picture)
            except ImageError as error:
                if strict:
                    raise ImageError(name, error.reason) from error
                failed.append(Skipped(start + i, name, error.reason))
        return failed

    step = min(_CHUNK, max(1, len(items) // 8))
    lows = range(0, len(items), step)
    parts = [pool.submit(work, low, min(low + step, len(items))) for low in lows]

    def result() -> DecodedImages:
        skipped = [one for part in parts for one in part.result()]
        decoded = _without(pixels, skipped, start)
        return decoded._replace(files=tuple(files[i - start] for i in decoded.positions.tolist()))

    return result


def _without(pixels: NDArray[np.uint8], skipped: list[Skipped], start: int = 0) -> DecodedImages:
    """Close the gaps of skipped images in place: a second array might not fit in memory."""
    total = len(pixels)
    keep = np.ones(total, bool)
    keep[[one.position - start for one in skipped]] = False
    gaps = np.flatnonzero(~keep).tolist()
    end = gaps[0] if gaps else total
    for gap, following in pairwise([*gaps, total]):
        length = following - gap - 1
        pixels[end : end + length] = pixels[gap + 1 : following]
        end += length
    return DecodedImages(pixels[:end], np.flatnonzero(keep) + start, tuple(skipped))
