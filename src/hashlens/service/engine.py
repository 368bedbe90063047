"""What the endpoints do, and in which threads: decode, encode in batches, search, write.

The event loop only waits. Every stage has threads of its own, so that a slow one does not hold
up the others, and work whose caller was cancelled is dropped before it begins.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.service.batching import BatchQueue, Slots
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.metrics import Metrics
from hashlens.service.schemas import (
    BatchAnswer,
    BatchItem,
    Hit,
    ImageRecord,
    IndexAnswer,
    LabelCount,
    MetadataField,
    Query,
    SearchAnswer,
    ServiceLimits,
    StageTimes,
)
from hashlens.service.thumbnails import Thumbnail, Thumbnails
from hashlens.service.uploads import UploadStore, decode_upload
from hashlens.types import MODES, Codes, Features, Mode, SearchOptions, SearchTrace

if TYPE_CHECKING:
    from hashlens.index.hash_index import HashIndex, Record
    from hashlens.models.encoder import Encoder


log = logging.getLogger("hashlens.service")

_TRIES = 3
_CONDITIONS = 64


class SearchSettings(NamedTuple):
    """How to search; as in ``HashIndex.search``."""

    k: int
    mode: Mode
    radius: int | None
    where: dict[str, Any]
    histogram: bool


class Found(NamedTuple):
    """What a search found; times in milliseconds."""

    hits: list[Hit]
    pool: int
    histogram: list[int] | None
    coarse: float
    fine: float
    missing: list[str]


def check_where(where: dict[str, Any]) -> dict[str, Any]:
    """Bound the number of values in a filter."""
    sizes = [len(value) if isinstance(value, list | dict) else 1 for value in where.values()]
    if sum(sizes) > _CONDITIONS:
        raise Refused(422, f"where: {sum(sizes)} values; at most {_CONDITIONS} are accepted")
    return where


def search(
    index: HashIndex,
    code: Codes,
    features: Features | None,
    settings: SearchSettings,
    exclude: int | None,
) -> Found:
    """Search with one encoded query."""
    with _refusing(422):
        for last in range(_TRIES, 0, -1):
            try:
                return _search(index, code, features, settings, exclude)
            except _Changed:
                if last == 1:
                    raise Refused(503, "the index changes too fast", Retry_After="1") from None
    raise AssertionError  # not reached


class _Changed(Exception):
    """An image was removed between the search and the look at its code."""


def _search(
    index: HashIndex,
    code: Codes,
    features: Features | None,
    settings: SearchSettings,
    exclude: int | None,
) -> Found:
    where, radius, mode = settings.where or None, settings.radius, settings.mode
    counts = None
    if settings.histogram or (mode != "hds" and (where or radius is not None)):
        counts = index.histogram(code, where, exclude)
    trace = SearchTrace()
    began = time.perf_counter()
    options = SearchOptions(
        settings.k,
        mode=mode,
        radius=radius,
        where=where,
        exclude=None if exclude is None else np.array([exclude]),
    )
    (hits,) = index.search_hits(
        code[None], None if features is None else features[None], options, trace
    )
    elapsed = time.perf_counter() - began
    ids = [hit.id for hit in hits]
    try:
        codes = index.encoded(ids)[1]
    except InvalidInputError:
        raise _Changed from None
    if mode == "hds":
        pool, coarse, fine = sum(trace.pools), trace.coarse, trace.fine
    else:
        everything = len(index) - (exclude is not None)
        pool = everything if counts is None else int(_within(counts, radius).sum())
        coarse, fine = (elapsed, 0.0) if mode == "bcs" else (0.0, elapsed)
    return Found(
        [
            Hit(
                id=hit.id,
                label=_text(hit.label),
                metadata=hit.metadata,
                hamming=hit.hamming,
                euclidean=hit.euclidean,
                code=packed.tobytes().hex(),
            )
            for hit, packed in zip(hits, codes, strict=True)
        ],
        pool,
        counts.tolist() if settings.histogram and counts is not None else None,
        1e3 * coarse,
        1e3 * fine,
        sorted(set(trace.missing)),
    )


def _within(counts: Any, radius: int | None) -> Any:
    return counts if radius is None else counts[: radius + 1]


def _text(label: str | None) -> str | None:
    """A label as JSON can carry it: file names may hold bytes that are no text."""
    return None if label is None else label.encode("utf-8", "replace").decode()


def look_up(index: HashIndex, image_id: int) -> tuple[Record, Codes, Features | None]:
    """Record, code and features of an image."""
    with _refusing(404):
        record = index.get(image_id)
        _, codes, features = index.encoded([image_id])
    width = features.shape[1]
    return record, codes[0], features[0].astype(np.float32) if width else None


def commit(
    index: HashIndex,
    code: Codes,
    features: Features | None,
    uri: str,
    label: str | None,
    metadata: dict[str, Any],
) -> int:
    """Add one encoded image; returns its id once it is durable."""
    with _writing():
        stored = None if features is None or index.feature_dim == 0 else features[None]
        try:
            return int(index.add_encoded(code[None], stored, [uri], [label], [metadata])[0])
        except InvalidInputError as error:  # names the image by a path that is no client's
            raise Refused(422, str(error).replace(uri, "image")) from None


def remove(index: HashIndex, image_id: int) -> None:
    """Remove one image."""
    with _refusing(404), _writing():
        index.remove(image_id)


def warm_up(index: HashIndex) -> None:
    """Search once each way, so that kernels are compiled before the first client waits."""
    if len(index) == 0:
        return
    first = int(index.ids()[0])
    _, code, features = look_up(index, first)
    modes: tuple[Mode, ...] = ("bcs",) if features is None else ("bcs", "hds", "es")
    for mode in modes:
        settings = SearchSettings(1, mode, None, {}, mode == "bcs")
        search(index, code, features, settings, first)


@contextmanager
def _refusing(status: int) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as error:
        raise Refused(status, str(error)) from None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except IndexStoreError as error:
        log.error("the index could not be written: %s", error)
        raise Refused(503, "the index cannot be written now", Retry_After="5") from None


_LABELS = 1000
_FIELDS = 8
_VALUES = 24
_LOOKED_AT = 2000


class Catalogue:
    """Describes an index; what is counted is counted once a commit."""

    def __init__(
        self, index: HashIndex, encoder: Encoder | None, limits: Limits, *, writable: bool
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._limits = limits
        self._writable = writable
        self._lock = threading.Lock()
        self._described: tuple[int, IndexAnswer] | None = None

    def describe(self) -> IndexAnswer:
        """Size, labels, metadata and limits."""
        with self._lock:
            info = self._index.info()
            if self._described is None or self._described[0] != info.commit:
                self._described = (info.commit, self._describe(info))
            return self._described[1]

    def _describe(self, info: Any) -> IndexAnswer:
        counts = [
            LabelCount(label=_plain(label), count=count)
            for label, count in self._index.label_counts().items()
            if label is not None
        ]
        most = sorted(counts, key=lambda each: -each.count)[:_LABELS]
        limits = self._limits
        return IndexAnswer(
            name=_plain(self._index.path.resolve().name),
            images=info.images,
            bits=info.bits,
            feature_dim=info.feature_dim,
            fingerprint=info.fingerprint,
            radius=None if self._encoder is None else self._encoder.radius,
            labels=sorted(most, key=lambda each: each.label),
            metadata=_fields(self._records(_LOOKED_AT, 0)),
            modes=list(MODES) if info.feature_dim else ["bcs"],
            searches_images=self._encoder is not None,
            writable=self._writable,
            limits=ServiceLimits(
                upload_bytes=limits.upload_bytes,
                pixels=limits.pixels,
                k=limits.k,
                batch=limits.batch,
            ),
        )

    def _records(self, count: int, seed: int) -> list[Record]:
        ids = self._index.ids()
        if len(ids) > count:
            random = np.random.default_rng(seed)
            ids = np.sort(random.choice(ids, count, replace=False, shuffle=False))
        try:
            return self._index.records(ids.tolist())
        except InvalidInputError:  # one was removed meanwhile
            return [record for image_id in ids.tolist() for record in self._if_there(image_id)]

    def _if_there(self, image_id: int) -> list[Record]:
        try:
            return [self._index.get(image_id)]
        except InvalidInputError:
            return []

    def sample(self, limit: int, seed: int) -> list[ImageRecord]:
        """A seeded sample, in the order of ids."""
        return [_shown(record) for record in self._records(limit, seed)]

    def record(self, image_id: int) -> ImageRecord:
        """One image."""
        return _shown(self._get(image_id))

    def place(self, image_id: int) -> tuple[str, bytes | None]:
        """URI of an image, and its file's digest; for this process, never for a client."""
        record = self._get(image_id)
        try:
            return record.uri, self._index.file_digest(image_id)
        except InvalidInputError as error:  # removed meanwhile
            raise Refused(404, str(error)) from None

    def _get(self, image_id: int) -> Record:
        try:
            return self._index.get(image_id)
        except InvalidInputError as error:
            raise Refused(404, str(error)) from None


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _shown(record: Record) -> ImageRecord:
    return ImageRecord(
        id=record.id,
        name=_plain(record.uri.rpartition("/")[2]),
        label=None if record.label is None else _plain(record.label),
        metadata=record.metadata,
        thumbnail=f"/v1/images/{record.id}/thumbnail",
    )


def _fields(records: list[Record]) -> list[MetadataField]:
    """Keys whose values are few enough to choose from."""
    seen: dict[str, set[Any]] = defaultdict(set)
    for record in records:
        for key, value in record.metadata.items():
            if isinstance(value, str | int | float):
                seen[key].add(value)
    fields = []
    for key, values in seen.items():
        if key != "label" and 1 < len(values) <= _VALUES:
            fields.append(MetadataField(key=key, values=sorted(values, key=_order)))
    return fields[:_FIELDS]


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


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
        self._catalogue = Catalogue(index, encoder, limits, writable=writable)
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
        await self._run("search", warm_up, self._index)
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
        return search(self._index, query.code, query.features, settings, query.query.id)

    async def _look_up(self, image_id: int) -> _Encoded:
        record, code, features = await self._run("search", look_up, self._index, image_id)
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
                image_id = commit(self._index, encoded.code, encoded.features, uri, label, metadata)
                return self._catalogue.record(image_id)

            return await self._run("write", write)

    async def remove(self, image_id: int) -> None:
        """Remove an image from the index."""
        async with self.slots.take():
            await self._run("write", remove, self._index, image_id)


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
