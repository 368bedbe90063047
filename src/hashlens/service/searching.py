"""Calls of the index, for worker threads: what clients get wrong becomes a refusal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.arrays import SearchTrace
from hashlens.protocols import Codes, Features, Mode
from hashlens.service.errors import Refused
from hashlens.service.schemas import Hit

if TYPE_CHECKING:
    from hashlens.index.index import HashIndex, Record

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
    """Bound the number of values in a filter.

    Raises
    ------
    Refused
        422 if it holds too many.
    """
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
    """Search with one encoded query.

    Raises
    ------
    Refused
        422 if the settings do not fit each other or the index.
    """
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
    hits = index.search_hits(
        code[None],
        None if features is None else features[None],
        settings.k,
        mode=mode,
        radius=radius,
        where=where,
        exclude=None if exclude is None else np.array([exclude]),
        trace=trace,
    )[0]
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
    """Record, code and features of an image.

    Raises
    ------
    Refused
        404 if it is not in the index.
    """
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
    """Add one encoded image; returns its id once it is durable.

    Raises
    ------
    Refused
        422 if label or metadata cannot be stored, 503 if the index cannot be written now.
    """
    with _writing():
        stored = None if features is None or index.feature_dim == 0 else features[None]
        try:
            return int(index.add_encoded(code[None], stored, [uri], [label], [metadata])[0])
        except InvalidInputError as error:  # names the image by a path that is no client's
            raise Refused(422, str(error).replace(uri, "image")) from None


def remove(index: HashIndex, image_id: int) -> None:
    """Remove one image.

    Raises
    ------
    Refused
        404 if it is not in the index, 503 if the index cannot be written now.
    """
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
