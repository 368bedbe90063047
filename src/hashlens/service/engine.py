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
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.codes.light import load_kernels
from hashlens.codes.packing import code_bytes
from hashlens.data.preprocessing import VectorInput
from hashlens.errors import IndexStoreError, InvalidInputError, first_line
from hashlens.files import uri_path
from hashlens.index.hash_index import HashIndex
from hashlens.index.protocol import Index
from hashlens.index.store import TimeLimit
from hashlens.machine import cores
from hashlens.service import schemas
from hashlens.service.limits import Limits, Room
from hashlens.service.metrics import Metrics
from hashlens.service.schemas import Refused
from hashlens.service.security import Slots
from hashlens.service.thumbnails import Thumbnail, Thumbnails
from hashlens.service.uploads import UploadStore, check_header, decode_upload
from hashlens.types import (
    MODES,
    Codes,
    Features,
    Hit,
    IndexInfo,
    Latent,
    Mode,
    Record,
    SearchOptions,
    SearchTrace,
    Text,
)

if TYPE_CHECKING:
    from hashlens.models.encoder import EncodedPixels, Encoder

log = logging.getLogger("hashlens.service")

Pixels = NDArray[np.uint8]
Asked: TypeAlias = int | bytes | Text | Features
"""An image of the index, the bytes of a picture, a text, or a vector (1, width)."""
Answer = TypeVar("Answer")


class Encoded(NamedTuple):
    """One query, ready to search."""

    query: schemas.QueryAnswer
    code: Codes
    features: Features | None
    latent: Latent
    times: tuple[float, float] = (0.0, 0.0)  # seconds of decoding and encoding


class Found(NamedTuple):
    """What a search found."""

    answer: dict[str, Any]  # query, hits, pool and histogram
    times: tuple[float, float, float, float]  # seconds of each stage
    missing: list[str]


_LABELS = 1000
_FIELDS = 8
_VALUES = 24
_RECORDS_READ = 2000


class Engine:
    """One index and one encoder behind bounded queues; ``async with`` starts and stops it.

    Clients learn the paths of images only with ``show_files``.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None,
        limits: Limits,
        *,
        writable: bool,
        show_files: bool = False,
    ) -> None:
        self.ready = False
        self.searches_texts = False
        self.metrics = Metrics()
        self.slots = Slots(limits.queue, f"{limits.queue} queries run or wait")
        self._index = index
        self._encoder = encoder
        self._limits = limits
        self._writable = writable
        self._show_files = show_files
        self._room = Room(limits.all_decoding_bytes)
        self._thumbnails = Thumbnails(limits, self._room)
        self._uploads = UploadStore(index.path)
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._searching: set[TimeLimit] = set()
        self._pictures = self._queue(lambda model, many: model.encode_pixels(np.stack(many)))
        self._texts = self._queue(lambda model, many: model.encode_text(many))
        self._describing = threading.Lock()
        self._described: tuple[tuple[IndexInfo, int], schemas.IndexAnswer] | None = None

    async def __aenter__(self) -> Engine:
        sizes = {"decode": self._limits.decoders or cores(), "encode": _BATCHES_AT_A_TIME}
        sizes |= {"search": max(2, cores()), "write": 1, "files": 2, "kernels": 1}
        for stage, size in sizes.items():
            self._threads[stage] = ThreadPoolExecutor(size, f"hashlens-{stage}")
        # The first client should not wait for libraries to be loaded.
        await self.run("search", self._warm_up)
        if self._encoder is not None and self._encoder.vectors is None:
            buffer = io.BytesIO()
            Image.new("L", (1, 1)).save(buffer, "PNG")
            pixels = await self.run("decode", self._decode, buffer.getvalue(), "image")
            await self.run("encode", self._encoder.encode_pixels, pixels[None])
        if self._encoder is not None and self._encoder.knows_texts:
            try:
                await self.run("encode", self._encoder.encode_text, ["a picture"])
                self.searches_texts = True
            except Exception as error:  # open_clip and the hub raise errors of every kind
                log.warning("no search by text: %s", first_line(error))
        for queue in (self._pictures, self._texts):
            queue.start()
        # Nor for the kernels: searches are done in NumPy until a thread has loaded them.
        self._threads["kernels"].submit(load_kernels, self._warm_up)
        self.ready = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ready = False
        for queue in (self._pictures, self._texts):
            await queue.stop()
        for threads in self._threads.values():
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    def _warm_up(self) -> None:
        """Search once in each way; not for an image, as its shard may be one that is damaged."""
        index = self._index
        if len(index) == 0:
            return
        code, bits = np.zeros(code_bytes(index.bits), np.uint8), np.full(index.bits, np.nan)
        features = np.zeros(index.feature_dim, np.float32) if index.feature_dim else None
        query = schemas.QueryAnswer(id=None, label=None, code="")
        encoded = Encoded(query, code, features, bits.astype(np.float32))
        for mode in self._modes:
            self.find(encoded, SearchOptions(1, mode=mode), histogram=mode == "bcs")

    async def run(self, stage: str, work: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call ``work`` in a thread of a stage: decode, encode, search, write or files."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[stage], work, *arguments)

    @property
    def answers(self) -> bool:
        """Whether searches are answered: started, not stopping, and none is past its time."""
        return self.ready and not any(limit.is_over() for limit in self._searching)

    def default_mode(self, radius: int | None = None) -> Mode:
        """How a search that names no mode is done."""
        return self._index.default_mode(self._encoder is not None, radius)

    @property
    def _modes(self) -> list[Mode]:
        """Modes that the index can be searched in."""
        return list(MODES) if self._index.feature_dim else ["acs", "bcs"]

    @property
    def vectors(self) -> VectorInput | None:
        """What vectors the model takes; None where it takes images, or there is none."""
        return None if self._encoder is None else self._encoder.vectors

    async def search(
        self, queries: Sequence[tuple[Asked, str]], options: SearchOptions, *, histogram: bool
    ) -> tuple[list[Found | Refused], schemas.StageTimes]:
        """Answer queries that have the names given; an image of the index does not find itself.

        A query that cannot be encoded is refused in its place.
        """
        began = time.perf_counter()
        limit = TimeLimit(self._limits.search_seconds)

        def find_all(encoded: list[Encoded | Refused]) -> list[Found | Refused]:
            with limit:
                return [
                    each
                    if isinstance(each, Refused)
                    else self.find(each, options, histogram=histogram)
                    for each in encoded
                ]

        async with self.slots.take(len(queries)):
            work = (self._encode(*query) for query in queries)
            encoded: list[Encoded | Refused] = []
            for outcome in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, Refused):
                    raise outcome
                encoded.append(outcome)
            self._searching.add(limit)
            try:
                answers = await self.run("search", find_all, encoded)
            finally:
                limit.stop()  # the client may have gone, and nobody waits
                self._searching.discard(limit)
        found = [each for each in answers if isinstance(each, Found)]
        seconds = [sum(each.times[stage] for each in found) for stage in range(4)]
        spent = [round(1e3 * stage, 3) for stage in (*seconds, time.perf_counter() - began)]
        times = schemas.StageTimes(**dict(zip(schemas.STAGES, spent, strict=True)))
        if found:
            self.metrics.observe(times, [each.answer["pool"] for each in found])
        return answers, times

    def find(self, encoded: Encoded, options: SearchOptions, *, histogram: bool) -> Found:
        """Search with one encoded query."""
        index, code, own = self._index, encoded.code, encoded.query.id
        if own is not None:
            options = replace(options, exclude=np.array([own]))
        fine_in_pool, radius = options.mode in ("hds", "acs"), options.radius
        trace, counts = SearchTrace(), None
        with refusing(422):
            if histogram or (not fine_in_pool and (options.where or radius is not None)):
                counts = index.histogram(code, options.where, own)
            began = time.perf_counter()
            features = None if encoded.features is None else encoded.features[None]
            (hits,) = index.search_hits(code[None], features, options, encoded.latent[None], trace)
            elapsed = time.perf_counter() - began
        if fine_in_pool:
            pool, coarse, fine = sum(trace.pools), trace.coarse, trace.fine
        else:
            coarse, fine = (elapsed, 0.0) if options.mode == "bcs" else (0.0, elapsed)
            if counts is None:
                pool = len(index) - (own is not None)
            else:
                pool = int(counts[: None if radius is None else radius + 1].sum())
        answer = {
            "query": encoded.query,
            "hits": [
                schemas.HitAnswer(**hit._asdict() | self._known(hit) | {"code": hit.code.hex()})
                for hit in hits
            ],
            "pool": pool,
            "histogram": counts.tolist() if histogram and counts is not None else None,
        }
        return Found(answer, (*encoded.times, coarse, fine), sorted(set(trace.missing)))

    def _look_up(self, image_id: int) -> Encoded:
        """An image of the index as a query."""
        with refusing(404):
            label = self._index.get(image_id).label
            _, (code,), features = self._index.encoded([image_id])
        query = schemas.QueryAnswer(id=image_id, label=_plain(label), code=code.tobytes().hex())
        only_bits = np.full(self._index.bits, np.nan, np.float32)
        known = features[0].astype(np.float32) if features.shape[1] else None
        return Encoded(query, code, known, only_bits)

    async def _encode(self, query: Asked, name: str) -> Encoded:
        if isinstance(query, int):
            return await self.run("search", self._look_up, query)
        began = decoded = time.perf_counter()
        if isinstance(query, bytes):
            pixels = await self.run("decode", self._decode, query, name)
            decoded = time.perf_counter()
            code, features, latent = await self._pictures.submit(pixels)
        elif isinstance(query, Text):
            self._model_of_images(name)
            if not self.searches_texts:
                raise Refused(422, f"{name}: this model knows no texts; search by 'image' or 'id'")
            code, features, latent = await self._texts.submit(query)
        else:
            assert self._encoder is not None  # `parse_vector` has refused before
            made = await self.run("encode", self._encoder.encode_prepared, query)
            code, features, latent = made.codes[0], made.features[0], made.latent[0]
        shown = schemas.QueryAnswer(id=None, label=None, code=code.tobytes().hex())
        times = (decoded - began, time.perf_counter() - decoded)
        return Encoded(shown, code, features, latent, times)

    def _model_of_images(self, name: str) -> Encoder:
        if self._encoder is None:
            raise Refused(422, f"{name}: this service has no model; search by 'id'")
        if self._encoder.vectors is not None:
            raise Refused(422, f"{name}: this model takes vectors; search by 'vector' or 'id'")
        return self._encoder

    def _decode(self, data: bytes, name: str) -> Pixels:
        preprocessing = self._model_of_images(name).preprocessing
        hint = preprocessing.size_hint
        header = check_header(data, self._limits, name, size_hint=hint)
        with self._room.take(header.decoding_bytes):
            return preprocessing.pixels(decode_upload(data, header, name, size_hint=hint))

    def _queue(
        self, encode: Callable[[Encoder, list[Any]], EncodedPixels]
    ) -> BatchQueue[Any, tuple[Codes, Features, Latent]]:
        """What is encoded together, in the encoder's threads."""

        async def run(items: list[Any]) -> list[tuple[Codes, Features, Latent]]:
            assert self._encoder is not None  # `_encode` has refused before
            self.metrics.batch.observe(len(items))
            made = await self.run("encode", encode, self._encoder, items)
            return list(zip(made.codes, made.features, made.latent, strict=True))

        return BatchQueue(run, self._limits.encode_batch)

    async def add(
        self, data: bytes, label: str | None, metadata: dict[str, Any]
    ) -> schemas.ImageRecord:
        """Encode an image, keep its bytes and commit it; returns once it is durable."""
        async with self.slots.take():
            encoded = await self._encode(data, "image")

            def write() -> schemas.ImageRecord:
                self._index_was_replaced()
                uri, features = self._uploads.keep(data), None
                if encoded.features is not None and self._index.feature_dim:
                    features = encoded.features[None]
                about = ([uri], [label], [metadata])
                try:
                    (added,) = self._index.add_encoded(encoded.code[None], features, *about)
                except InvalidInputError as error:  # names the image by a path that is no client's
                    raise Refused(422, str(error).replace(uri, "image")) from None
                return self.record(int(added))

            return await self.run("write", write)

    async def remove(self, image_id: int) -> None:
        """Remove an image from the index."""

        def write() -> None:
            if self._index_was_replaced():
                raise Refused(
                    409,
                    "the index was replaced by another one, where this id may be another image; "
                    "search it again",
                )
            with refusing(404):
                self._index.remove(image_id)

        async with self.slots.take():
            await self.run("write", write)

    def _index_was_replaced(self) -> bool:
        """Whether another index stands at the path than at the last change; say so once."""
        replaced = isinstance(self._index, HashIndex) and self._index.accept_replacement()
        if replaced:
            log.warning("the index was replaced by another one; the new one is served and changed")
        return replaced

    async def metrics_page(self) -> bytes:
        """All metrics, the index's size counted now."""
        images = await self.run("files", len, self._index)
        return self.metrics.page(images, self.slots.taken)

    def describe(self) -> schemas.IndexAnswer:
        """Size, labels, metadata and limits; counted once per commit."""
        with self._describing:
            info = self._index.info()
            known = (info, self._index.path.stat().st_ino)  # another folder may have come there
            if self._described is None or self._described[0] != known:
                self._described = (known, self._describe(info))
            return self._described[1]

    def _describe(self, info: IndexInfo) -> schemas.IndexAnswer:
        counts = [
            schemas.LabelCount(label=_plain(label), count=count)
            for label, count in self._index.label_counts().items()
            if label is not None
        ]
        most = sorted(counts, key=lambda each: -each.count)[:_LABELS]
        records: list[Record] = []
        with suppress(IndexStoreError):  # a shard that cannot be read hides no more than its images
            records = self._records(_RECORDS_READ, 0)
        return schemas.IndexAnswer(
            name=_plain(self._index.path.resolve().name),
            images=info.images,
            bits=info.bits,
            feature_dim=info.feature_dim,
            fingerprint=info.fingerprint,
            radius=None if self._encoder is None else self._encoder.radius,
            labels=sorted(most, key=lambda each: each.label),
            metadata=_fields(records),
            modes=self._modes,
            mode=self.default_mode(),
            searches_images=self._encoder is not None and self._encoder.vectors is None,
            searches_texts=self.searches_texts,
            vector_width=None if self.vectors is None else self.vectors.width,
            writable=self._writable,
            shows_files=self._show_files,
            limits=schemas.ServiceLimits.model_validate(self._limits, from_attributes=True),
        )

    def sample(self, limit: int, seed: int) -> list[schemas.ImageRecord]:
        """A seeded random sample of the images, in the order of ids."""
        return [self._shown(record) for record in self._records(limit, seed)]

    def _records(self, count: int, seed: int) -> list[Record]:
        ids = self._index.ids()
        if len(ids) > count:
            random = np.random.default_rng(seed)
            ids = np.sort(random.choice(ids, count, replace=False, shuffle=False))
        try:
            return self._index.records(ids.tolist())
        except InvalidInputError:  # one was removed meanwhile
            left = []
            for image_id in ids.tolist():
                with suppress(InvalidInputError):
                    left.append(self._index.get(image_id))
            return left

    def record(self, image_id: int) -> schemas.ImageRecord:
        """What is known of an image."""
        with refusing(404):
            return self._shown(self._index.get(image_id))

    def thumbnail(self, image_id: int) -> Thumbnail:
        """A small picture of an image."""
        return self._thumbnails.get(*self._place(image_id))

    def original(self, image_id: int) -> Thumbnail:
        """An image as its file holds it."""
        if not self._show_files:
            raise Refused(403, "this service shows no files; start it with --show-files")
        return self._thumbnails.original(*self._place(image_id))

    def _place(self, image_id: int) -> tuple[str, bytes | None]:
        with refusing(404):
            uri, digest = self._index.get(image_id).uri, self._index.file_digest(image_id)
        return self._uploads.find(uri), digest

    def _known(self, image: Record | Hit) -> dict[str, Any]:
        """What clients may know of an image."""
        uri = image.uri
        path = _plain(os.fspath(uri_path(uri)) if uri.startswith("file://") else uri)
        return {
            "id": image.id,
            "name": path.rstrip("/").rpartition("/")[2],
            "path": path if self._show_files else None,
            "label": _plain(image.label),
            "metadata": image.metadata,
        }

    def _shown(self, record: Record) -> schemas.ImageRecord:
        thumbnail = f"/v1/images/{record.id}/thumbnail"
        return schemas.ImageRecord(**self._known(record), thumbnail=thumbnail)


Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCHES_AT_A_TIME = 2  # so that cores have work while a batch is made ready or handed out


class BatchQueue(Generic[Item, Result]):
    """Runs an item at once, and those that arrive while all workers are busy as the next batch."""

    def __init__(self, run: Callable[[list[Item]], Awaitable[Sequence[Result]]], size: int) -> None:
        self._run = run
        self._size = size
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

    def start(self) -> None:
        """Begin to work; call inside the event loop."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(_BATCHES_AT_A_TIME)]

    async def stop(self) -> None:
        """Stop; items that run or wait fail with CancelledError."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()

    async def submit(self, item: Item) -> Result:
        """The result of ``item``; cancelling the caller drops it if it has not begun."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, done))
        return await done

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            items = {done: item for item, done in batch if not done.done()}
            if not items:
                continue
            try:
                results = await self._run(list(items.values()))
            except asyncio.CancelledError:
                for done in items:
                    done.cancel()
                raise
            except Exception as error:
                for done in items:
                    if not done.done():
                        done.set_exception(error)
            else:
                for done, result in zip(items, results, strict=True):
                    if not done.done():
                        done.set_result(result)


@contextmanager
def refusing(status: int) -> Iterator[None]:
    """Refuse a request for what the index, or a search of it, does not take."""
    try:
        yield
    except InvalidInputError as error:
        raise Refused(status, str(error)) from None


def _fields(records: list[Record]) -> list[schemas.MetadataField]:
    """Keys whose values are few enough to choose from."""
    seen: dict[str, set[Any]] = defaultdict(set)
    for record in records:
        for key, value in record.metadata.items():
            if isinstance(value, str | int | float):
                seen[key].add(value)
    fields = [
        schemas.MetadataField(key=key, values=sorted(values, key=lambda v: (isinstance(v, str), v)))
        for key, values in seen.items()
        if key != "label" and 1 < len(values) <= _VALUES
    ]
    return fields[:_FIELDS]


Name = TypeVar("Name", str, "str | None")


def _plain(text: Name) -> Name:
    """Text as JSON can carry it: names of files may hold bytes that are no text."""
    return None if text is None else text.encode("utf-8", "replace").decode()
