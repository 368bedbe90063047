"""Text files that say something of images: CSV, JSON lines, and lists of paths with labels."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.folders import SUFFIXES
from hashlens.data.labels import Labels, labels_from_values
from hashlens.data.source import BLOCK, Columns, FileImages, ReadOptions, Source, packed
from hashlens.data.tables import IMAGE_COLUMNS, find_column, label_column, labelled_source, near
from hashlens.errors import SourceError, system_reason
from hashlens.files import compared, is_remote, path_uri, uri_path

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
LIST_SUFFIXES = (*TABLE_SUFFIXES, ".txt", ".lst")
FOLDER_TABLE = re.compile(r"(metadata|labels)\.(csv|tsv|jsonl|txt)", re.IGNORECASE)
"""Files of a folder that say something of its images."""

_KEYS = (*IMAGE_COLUMNS, "name", "image_name", "image_id", "id")
_PATH = re.compile(
    rf"(?P<path>.+?({'|'.join(map(re.escape, sorted(SUFFIXES)))}))(?P<rest>[\s,;].*)?",
    re.IGNORECASE,
)


class ImageList(NamedTuple):
    """What a file says: the image of each row, a label or None, and other columns."""

    path: Path
    names: Sequence[Any] | NDArray[Any]
    labels: Sequence[Any] | None
    columns: Columns


def open_list(spec: str, path: Path, options: ReadOptions) -> Source:
    """The images that a file lists, as a source."""
    read = read_list(path, options)
    columns = read.columns  # what is kept of it
    places = (near(str(name), path) for name in read.names)
    store = FileImages(packed(p if isinstance(p, str) else path_uri(p) for p in places))
    labels = Labels.none(len(store), f"{path} has no column 'label'")
    if read.labels is not None:
        labels = labels_from_values(read.labels, f"{path}, labels")
    return labelled_source(spec, store, labels, lambda: columns)


def read_list(path: Path, options: ReadOptions | None = None) -> ImageList:
    """Read a CSV, TSV or JSON lines file, or a list of paths with labels."""
    options = options or ReadOptions()
    if path.suffix.lower() not in TABLE_SUFFIXES and _PATH.fullmatch(next(_lines(path))):
        return _paths(path)
    columns = read_columns(path)
    is_known = any(name.lower() in _KEYS for name in columns)
    first = None if is_known else next(iter(columns), None)
    image = find_column(columns, _KEYS, str(path), options.image_column or first)
    others = [name for name in columns if name != image]
    label = label_column(others, str(path), options)
    if label is None and path.stem.lower().startswith("label"):
        label = next(iter(others), None)
    labels = None if label is None else columns[label]
    rest = {name: values for name, values in columns.items() if name not in (image, label)}
    return ImageList(path, columns[image], labels, rest)


def read_columns(path: Path) -> Columns:
    """All columns of a CSV, TSV or JSON lines file."""
    is_json = path.suffix.lower() == ".jsonl"
    return columns_of(_json_rows(path)) if is_json else _csv_columns(path)


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not empty."""
    found = False
    try:
        with open(path, encoding="utf-8-sig") as file:
            for text in file:
                for line in filter(str.strip, text.splitlines()):  # at more than `open` knows
                    found = True
                    yield line
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not text in UTF-8; save it again as UTF-8") from error
    except OSError as error:
        raise SourceError(f"{path}: {system_reason(error)}") from error
    if not found:
        raise SourceError(f"{path}: empty; expected a line for each image")


def _csv_columns(path: Path) -> Columns:
    lines = _lines(path)
    first = next(lines)
    delimiter = max(",;\t", key=first.lstrip().count)
    comma = "," if delimiter == ";" else "."  # of a decimal number
    rows: Iterator[list[str]] = filter(any, csv.reader(chain([first], lines), delimiter=delimiter))
    try:
        head = next(rows, [""])
        header = [cell.strip() for cell in head]
        if os.path.splitext(header[0])[1].lower() in SUFFIXES:  # no names of columns, rows at once
            header = ["file", "label", *(f"column {i}" for i in range(3, len(header) + 1))]
            rows = chain([head], rows)
        columns, done, more = [[packed()] for _ in header], 0, [""] * len(header)
        while block := list(islice(rows, BLOCK)):
            for number, row in enumerate(block, done + 2):
                if len(row) > len(header):
                    raise SourceError(
                        f"{path}: expected {len(header)} columns in each row, got {len(row)} in "
                        f"row {number}; put quotes around cells that hold '{delimiter}'"
                    )
            done += len(block)
            for i, cells in enumerate(columns):
                cells.append(packed((row + more)[i].strip() or None for row in block))
    except csv.Error as error:
        raise SourceError(f"{path}: not a CSV file ({error})") from error
    values = (typed(np.concatenate(cells), comma) for cells in columns)
    return {name: cells for name, cells in zip(header, values, strict=True) if name}


def typed(cells: Any, comma: str = ".") -> Any:
    """Cells as numbers, true and false if all of the column are; else as words."""
    values: list[Any] = []
    for cell in cells:
        try:
            value = json.loads(cell.replace(comma, ".")) if cell else None
        except (ValueError, RecursionError):
            return cells
        if not isinstance(value, int | float | None) or value in (float("inf"), -float("inf")):
            return cells
        values.append(value)
    return values


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for count, line in enumerate(_lines(path), 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: line {count} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise SourceError(f"{path}: line {count}: expected an object, got {line:.60}")
        yield values


def columns_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Values of rows by column; None where a row has none."""
    columns: dict[str, Any] = {}
    for count, values in enumerate(rows):
        for name in columns | values:
            columns.setdefault(name, [None] * count).append(values.get(name))
    return columns


def _paths(path: Path) -> ImageList:
    """``path label ...``: a word, numbers, or as many 0 and 1 in each line as there are classes."""

    def read() -> Iterator[str]:
        for i, line in enumerate(_lines(path), 1):
            match = _PATH.fullmatch(line.strip())
            if match is None:
                raise SourceError(f"{path}: line {i}: expected a path and labels, got {line:.60}")
            rest = (match["rest"] or "").strip(" \t,;")
            words = tuple(re.split(r"[\s,;]+", rest)) if match["rest"] else ()
            rests.append(same.setdefault(words, words))
            yield match["path"]

    rests: list[tuple[str, ...]] = []
    same: dict[tuple[str, ...], tuple[str, ...]] = {}
    names = packed(read())
    wide = max(map(len, same))
    if not wide:
        return ImageList(path, names, None, {})
    flags = {word for rest in same for word in rest} <= {"0", "1"}
    short = next((i for i, rest in enumerate(rests) if len(rest) != wide), None)
    if flags and wide > 2 and short is not None:
        raise SourceError(
            f"{path}: line {short + 1}: expected {wide} flags 0 or 1, one for each class as in "
            f"other lines, got {len(rests[short])}"
        )
    if flags and wide > 1 and short is None:
        several = {rest: [i for i, flag in enumerate(rest) if flag == "1"] for rest in same}
    else:
        flat = iter(typed([word or None for rest in same for word in rest]))
        several = {rest: [next(flat) for _ in rest] for rest in same}
    most = max(map(len, several.values()))
    labels = [several[rest] if most > 1 else next(iter(several[rest]), None) for rest in rests]
    return ImageList(path, names, labels, {})


def match_images(read: ImageList, uris: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """The row that a file has of each image, -1 where none, and how many rows name no image.

    By path, or by as much of its end as names one image alone; also without the suffix.
    """
    ends = [compared(uri if is_remote(uri) else uri_path(uri).as_posix()) for uri in uris]
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, end in enumerate(ends):
        name = end.rpartition("/")[2]
        for key in {name, os.path.splitext(name)[0]}:
            by_name[key].append(i)
    rows, unknown = np.full(len(uris), -1, np.int64), 0
    for row, name in enumerate(read.names):
        wanted = compared(str(name).replace("\\", "/")).removeprefix("./").strip("/")
        places = by_name.get(wanted.rpartition("/")[2], [])
        exact = {compared((read.path.parent / wanted).absolute().as_posix()), f"/{wanted}"}
        found = [i for i in places if ends[i] in exact]
        if not found:
            tail = f"/{wanted}"
            found = [
                i for i in places if ends[i].endswith((tail, tail + os.path.splitext(ends[i])[1]))
            ]
        if len(found) == 1:
            rows[found[0]] = row
        else:
            unknown += 1
    return rows, unknown


def join_list(source: Source, read: ImageList) -> Source:
    """A source of files with what a list says of them: labels, if it has some, and columns."""
    rows, unknown = match_images(read, source.uris)
    notes = list(source.notes)
    missing = int((rows < 0).sum())
    if missing:
        notes.append(f"{missing} images have no row in {read.path.name}")
    if unknown:
        notes.append(f"{unknown} rows of {read.path.name} name no image here, or several")
    picked = rows.tolist()
    columns = {
        name: [None if row < 0 else values[row] for row in picked]
        for name, values in read.columns.items()
    }
    source = replace(source, notes=tuple(notes), columns=lambda: columns)
    if read.labels is None:
        return source
    given = [None if row < 0 else read.labels[row] for row in picked]
    found = labels_from_values(given, f"{read.path}, labels")
    kept = [note for note in notes if "so no classes" not in note and "not taken for" not in note]
    return replace(
        source,
        classes=found.classes,
        labels=found.labels,
        label_matrix=found.matrix,
        notes=tuple(kept),
    )
