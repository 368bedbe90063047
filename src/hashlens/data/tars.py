"""Tar files of images, as WebDataset writes them.

Members that follow each other, and whose paths are equal up to the first dot of the file's name,
are a sample: an image, and what ``.cls``, ``.txt`` and ``.json`` say of it. An image is named by
the byte at which its sample begins, so that it is read without going through the file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import FileIO
from itertools import groupby
from pathlib import PurePosixPath
from tarfile import ReadError, TarFile, TarInfo
from typing import Any

from hashlens.data.folders import Listing, is_image_name
from hashlens.data.image import MAX_FILE_BYTES, RawImage
from hashlens.data.lists import columns_of, typed
from hashlens.data.remote import open_remote
from hashlens.data.source import FileImages, ReadOptions, Source, packed
from hashlens.data.tables import open_once, table_source
from hashlens.errors import SourceError, few_of, first_line, system_reason
from hashlens.files import is_remote, parse_row, path_uri, row_uri

_TEXTS = ("cls", "txt", "json")
_TEXT_BYTES = 1 << 20
_BLOCK = 512  # a tar file consists of blocks


class TarImages:
    """Images of a tar file, by the byte at which the sample of each begins. Any thread may read.

    ``column`` is the kind of the images, such as ``left.png``; else a sample's first is taken.
    """

    def __init__(self, path: str, column: str | None = None) -> None:
        self.damage, self._column, self._lock = "", column, threading.Lock()
        try:
            self._file = open_remote(path) if is_remote(path) else FileIO(path)
            self.status = None if is_remote(path) else os.fstat(self._file.fileno())
        except OSError as error:
            raise SourceError(f"{path}: {system_reason(error)}") from error

    def read(self, row: int) -> bytes:
        """The image of the sample that begins at this byte."""
        with self._lock:
            for image in filter(self.is_image, next(self.samples(row), ())):
                return self.content(image, MAX_FILE_BYTES)
        raise SourceError(f"no sample with an image begins at this byte{self.damage}")

    def samples(self, start: int = 0) -> Iterator[list[TarInfo]]:
        """Members that belong together, from a byte on; ``damage`` says why they end too early."""
        return (list(sample) for _, sample in groupby(self._members(start), lambda m: _split(m)[0]))

    def is_image(self, member: TarInfo) -> bool:
        """Whether it is of the kind that was asked for, or else any image."""
        kind = _split(member)[1]
        is_asked = kind == self._column if self._column else is_image_name(f"x.{kind}")
        return is_asked and member.isreg()

    def content(self, member: TarInfo, most: int) -> bytes:
        """The bytes of a member of at most ``most`` bytes."""
        if member.size > most:
            raise SourceError(f"over the limit of {most:,} bytes")
        try:
            self._file.seek(member.offset_data)
            data: bytes = self._file.read(member.size)
            if len(data) < member.size:
                raise EOFError("the tar file ends within it")
        except Exception as error:  # each file system raises its own kinds
            raise SourceError(f"cannot be read ({first_line(error)})") from error
        return data

    def _members(self, start: int) -> Iterator[TarInfo]:
        self.damage, at = "", start
        try:
            self._file.seek(start)
            with TarFile(fileobj=self._file) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it holds all of them
                    at = tar.offset
                    if not member.isdir():
                        yield member
            self._file.seek(at)
            if self._file.read(_BLOCK).strip(b"\0"):
                raise ReadError("no header of a member")
        except Exception as error:  # damaged headers raise anything
            self.damage = f" (read up to byte {at:,}: {first_line(error)})"


class TarRows(FileImages):
    """Images of tar files, by their URIs."""

    def read(self, row: int) -> RawImage:
        """The image's bytes."""
        table, start, column = parse_row(self.uri(row)) or ("", 0, None)
        return open_once(TarImages, table, column).read(start)  # type: ignore[no-any-return]


def _split(member: TarInfo) -> tuple[str, str]:
    """``cat/0001`` and ``seg.png`` of ``cat/0001.seg.png``."""
    folder, slash, name = member.name.rpartition("/")
    key, _, kind = name.partition(".")
    return folder + slash + key, kind.lower()


def open_tars(spec: str, paths: Sequence[str], options: ReadOptions) -> Source:
    """Tar files as a source: an image of each sample, with what else the sample says."""
    listing, left, damaged = Listing(), Counter[str](), list[str]()
    starts, ends, column = array("q"), list[int](), options.image_column

    def cells() -> Iterator[dict[str, Any]]:
        for path in paths:
            try:
                file = TarImages(path, column)
                for sample in file.samples():
                    images = [member for member in sample if file.is_image(member)]
                    said = {"key": _split(sample[0])[0]} | _texts(file, sample, left)
                    left["links"] += sum(not member.isreg() for member in sample)
                    left["further images of a sample; --image-column takes them"] += len(images[1:])
                    left["samples without an image"] += len(said) > 1 and not images
                    for member in sample:
                        if member not in images and _split(member)[1] not in _TEXTS:
                            listing.count(member.name)
                    if images and listing.takes(PurePosixPath(images[0].name).parts, options):
                        starts.append(sample[0].offset)
                        yield said
                if file.damage:
                    raise SourceError(f"{path}{file.damage}")
            except SourceError as error:
                if options.strict:
                    raise
                damaged.append(str(error))
            ends.append(len(starts))

    columns = columns_of(cells())
    notes = listing.notes() + [f"left out {count} {what}" for what, count in left.items() if count]
    if damaged:
        notes.append(f"{len(damaged)} of {len(paths)} tar files are not whole: {few_of(damaged)}")
    if not starts:
        said = "".join(f"; {note}" for note in notes)
        raise SourceError(f"{spec}: no images found; expected members such as 0001.jpg{said}")
    if "cls" in columns:
        columns["cls"] = typed(columns["cls"])
    names = ((path if is_remote(path) else path_uri(path)) for path in paths)
    tables = zip(names, [0, *ends], ends, strict=False)
    store = TarRows(packed(row_uri(n, at, column) for n, a, b in tables for at in starts[a:b]))
    source = table_source(spec, store, "", lambda n: {x: columns[x] for x in n}, columns, options)
    passed_over = dict(listing.passed_over)
    return replace(source, notes=(*source.notes, *notes), passed_over=passed_over)


def _texts(file: TarImages, sample: list[TarInfo], left: Counter[str]) -> dict[str, Any]:
    """What the members of text of a sample say; those that cannot be read are counted."""
    said: dict[str, Any] = {}
    for member in sample:
        if (kind := _split(member)[1]) in _TEXTS:
            try:
                text = sys.intern(file.content(member, _TEXT_BYTES).decode("utf-8-sig").strip())
                said |= json.loads(text) if kind == "json" else {kind: text}
            except (SourceError, ValueError, TypeError, RecursionError):
                left["members of text that cannot be read"] += 1
    return said
