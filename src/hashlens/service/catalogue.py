"""What the index holds, told without a path: records, samples, labels and metadata for filters."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hashlens.errors import InvalidInputError
from hashlens.protocols import MODES
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.schemas import (
    ImageRecord,
    IndexAnswer,
    LabelCount,
    MetadataField,
    ServiceLimits,
)

if TYPE_CHECKING:
    from hashlens.index.index import HashIndex, Record
    from hashlens.models.encoder import Encoder

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
        """One image.

        Raises
        ------
        Refused
            404 if it is not in the index.
        """
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
