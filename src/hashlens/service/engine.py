"""What the endpoints do, and in which threads: decode, encode in batches, search, write.

The event loop only waits. Every stage has threads of its own, so that a slow one does not hold
up the others, and work whose caller was cancelled is dropped before it begins.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.protocols import Codes, Features
from hashlens.service import catalogue, searching
from hashlens.service.batching import BatchQueue, Slots
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.metrics import Metrics
from hashlens.service.schemas import (
    BatchAnswer,
    BatchItem,
    ImageRecord,
    IndexAnswer,
    Query,
    SearchAnswer,
    StageTimes,
)
from hashlens.service.searching import Found, SearchSettings
from hashlens.service.thumbnails import Thumbnail, Thumbnails
from hashlens.service.upload_store import UploadStore
from hashlens.service.uploads import decode_upload

if TYPE_CHECKING:
    from hashlens.index.index import HashIndex
    from hashlens.models.encoder import Encoder

Pixels = NDArray[np.uint8]
Answer = TypeVar("Answer")


class _Encoded(NamedTuple):
    """One query, ready to search; times in milliseconds."""

    query: Query
    code: Codes
    features: Features | None
    decode: float = 0.0
    encode: float = 0.0


class Engine:
    """One index and one encoder behind bounded queues; ``async with`` starts and stops it."""

    def __init__(
        self,
        index: HashIndex,
        encoder: Encoder | None,
        limits: Limits,
        metrics: Metrics,
        *,
        writable: bool,
    ) -> None:
        self.ready = False
        self.slots = Slots(limits.queue, f"{limits.queue} queries run or wait")
        self._index = index
        self._encoder = encoder
        self._limits = limits
        self._metrics = metrics
        self._catalogue = catalogue.Catalogue(index, encoder, limits, writable=writable)
        self._thumbnails = Thumbnails(limits)
        self._uploads = UploadStore(index.path)
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._batches: BatchQueue[Pixels, tuple[Codes, Features]] = BatchQueue(
            self._encode_batch, limits.encode_batch, limits.encode_wait_ms / 1000
        )

    async def __aenter__(self) -> Engine:
        sizes = {"decode": 2, "encode": 1, "search": max(2, os.cpu_count() or 1), "write": 1}
        self._threads = {
            name: ThreadPoolExecutor(size, thread_name_prefix=f"hashlens-{name}")
            for name, size in (sizes | {"files": 2}).items()
        }
        await self._run("search", searching.warm_up, self._index)
        if self._encoder is not None:
            await self._run("decode", self._decode, _one_pixel(), "image")
            await self._run("encode", _warm_up, self._encoder)
        self._batches.start()
        self.ready = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ready = False
        await self._batches.stop()
        for threads in self._threads.values():
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    async def _run(self, stage: str, work: Callable[..., Answer], *arguments: Any) -> Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[stage], work, *arguments)

    # Queries

    async def search_by_image(self, data: bytes, settings: SearchSettings) -> SearchAnswer:
        """The nearest images of an uploaded one."""
        return await self._answer(lambda: self._encode_upload(data, "image"), settings)

    async def search_by_id(self, image_id: int, settings: SearchSettings) -> SearchAnswer:
        """The nearest images of one of the index, itself left out."""
        return await self._answer(lambda: self._look_up(image_id), settings)

    async def _answer(
        self, query: Callable[[], Awaitable[_Encoded]], settings: SearchSettings
    ) -> SearchAnswer:
        began = time.perf_counter()
        async with self.slots.take():
            encoded = await query()
            found = await self._run("search", self._search, encoded, settings)
        times = _times([encoded], [found], began)
        self._metrics.observe(times, [found.pool])
        return SearchAnswer(
            query=encoded.query,
            hits=found.hits,
            pool=found.pool,
            histogram=found.histogram,
            missing=found.missing,
            timings_ms=times,
        )

    async def search_batch(
        self, ids: Sequence[int], uploads: Sequence[bytes], settings: SearchSettings
    ) -> BatchAnswer:
        """Results of each id and each upload; one that fails says why in its place."""
        began = time.perf_counter()
        async with self.slots.take(len(ids) + len(uploads)):
            encoded = await asyncio.gather(
                *(self._look_up(image_id) for image_id in ids),
                *(self._encode_upload(data, f"images[{i}]") for i, data in enumerate(uploads)),
                return_exceptions=True,
            )
            for outcome in encoded:
                if isinstance(outcome, BaseException) and not isinstance(outcome, Refused):
                    raise outcome
            whole = [query for query in encoded if isinstance(query, _Encoded)]
            found = await self._run(
                "search", lambda: [self._search(query, settings) for query in whole]
            )
        times = _times(whole, found, began)
        self._metrics.observe(times, [each.pool for each in found])
        answers = iter(found)
        missing = sorted({shard for each in found for shard in each.missing})
        items = [_item(e, answers) for e in encoded]
        return BatchAnswer(results=items, missing=missing, timings_ms=times)

    def _search(self, query: _Encoded, settings: SearchSettings) -> Found:
        return searching.search(self._index, query.code, query.features, settings, query.query.id)

    async def _look_up(self, image_id: int) -> _Encoded:
        record, code, features = await self._run("search", searching.look_up, self._index, image_id)
        query = Query(id=image_id, label=record.label, code=code.tobytes().hex())
        return _Encoded(query, code, features)

    async def _encode_upload(self, data: bytes, name: str) -> _Encoded:
        began = time.perf_counter()
        pixels = await self._run("decode", self._decode, data, name)
        decoded = time.perf_counter()
        code, features = await self._batches.submit(pixels)
        query = Query(id=None, label=None, code=code.tobytes().hex())
        ended = time.perf_counter()
        return _Encoded(query, code, features, 1e3 * (decoded - began), 1e3 * (ended - decoded))

    def _decode(self, data: bytes, name: str) -> Pixels:
        if self._encoder is None:
            raise Refused(422, f"{name}: this service has no model; search by 'id'")
        preprocessing = self._encoder.preprocessing
        hint = preprocessing.size_hint
        return preprocessing.pixels(decode_upload(data, self._limits, name, size_hint=hint))

    async def _encode_batch(self, pixels: list[Pixels]) -> list[tuple[Codes, Features]]:
        assert self._encoder is not None  # `_decode` has refused before
        self._metrics.batch.observe(len(pixels))
        codes, features, _ = await self._run(
            "encode", self._encoder.encode_pixels, np.stack(pixels)
        )
        return list(zip(codes, features, strict=True))

    # Images of the index

    async def describe(self) -> IndexAnswer:
        """What is searched."""
        return await self._run("files", self._catalogue.describe)

    async def sample(self, limit: int, seed: int) -> list[ImageRecord]:
        """Some images, in the order of ids."""
        return await self._run("files", self._catalogue.sample, limit, seed)

    async def record(self, image_id: int) -> ImageRecord:
        """One image's record."""
        return await self._run("files", self._catalogue.record, image_id)

    async def thumbnail(self, image_id: int) -> Thumbnail:
        """One image's thumbnail."""

        def make() -> Thumbnail:
            return self._thumbnails.get(*self._catalogue.place(image_id))

        return await self._run("files", make)

    async def metrics_page(self) -> bytes:
        """All metrics, the index's size counted now."""
        self._metrics.images.set(await self._run("files", len, self._index))
        self._metrics.working.set(self.slots.taken)
        return self._metrics.page()

    # Writing

    async def add(self, data: bytes, label: str | None, metadata: dict[str, Any]) -> ImageRecord:
        """Encode an image, keep its bytes and commit it; returns once it is durable."""
        async with self.slots.take():
            encoded = await self._encode_upload(data, "image")

            def write() -> ImageRecord:
                uri = self._uploads.keep(data)
                image_id = searching.commit(
                    self._index, encoded.code, encoded.features, uri, label, metadata
                )
                return self._catalogue.record(image_id)

            return await self._run("write", write)

    async def remove(self, image_id: int) -> None:
        """Remove an image from the index."""
        async with self.slots.take():
            await self._run("write", searching.remove, self._index, image_id)


def _one_pixel() -> bytes:
    """A PNG: decoding it loads what the first client would wait for."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def _warm_up(encoder: Encoder) -> None:
    size, channels = encoder.preprocessing.size, encoder.preprocessing.channels
    encoder.encode_pixels(np.zeros((1, size, size, channels), np.uint8))


def _times(queries: list[_Encoded], found: list[Found], began: float) -> StageTimes:
    stages = {
        "decode": sum(query.decode for query in queries),
        "encode": sum(query.encode for query in queries),
        "coarse": sum(each.coarse for each in found),
        "fine": sum(each.fine for each in found),
        "total": 1e3 * (time.perf_counter() - began),
    }
    return StageTimes(**{stage: round(value, 3) for stage, value in stages.items()})


def _item(encoded: _Encoded | BaseException, answers: Any) -> BatchItem:
    if isinstance(encoded, Refused):
        return BatchItem(query=None, hits=[], pool=0, histogram=None, error=encoded.detail)
    assert isinstance(encoded, _Encoded)
    found: Found = next(answers)
    return BatchItem(
        query=encoded.query,
        hits=found.hits,
        pool=found.pool,
        histogram=found.histogram,
        error=None,
    )
