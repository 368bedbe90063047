"""Text files that say something of images: CSV, JSON lines, and lists of paths with labels."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.folders import SUFFIXES
from hashlens.data.labels import Labels, labels_from_values
from hashlens.data.source import Columns, FileImages, ReadOptions, Source
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
    names: list[str]
    labels: list[Any] | None
    columns: Columns


def open_list(spec: str, path: Path, options: ReadOptions) -> Source:
    """The images that a file lists, as a source."""
    read = read_list(path, options)
    places = [near(name, path) for name in read.names]
    store = FileImages(tuple(p if isinstance(p, str) else path_uri(p) for p in places))
    labels = Labels.none(len(store), f"{path} has no column 'label'")
    if read.labels is not None:
        labels = labels_from_values(read.labels, f"{path}, labels")
    return labelled_source(spec, store, labels, lambda: read.columns)


def read_list(path: Path, options: ReadOptions | None = None) -> ImageList:
    """Read a CSV, TSV or JSON lines file, or a list of paths with labels."""
    options = options or ReadOptions()
    text, lines = _read_lines(path)
    if path.suffix.lower() not in TABLE_SUFFIXES and _PATH.fullmatch(lines[0]) is not None:
        return _paths(path, lines)
    columns = _columns(path, text, lines)
    is_known = any(name.lower() in _KEYS for name in columns)
    first = None if is_known else next(iter(columns))
    image = find_column(columns, _KEYS, str(path), options.image_column or first)
    others = [name for name in columns if name != image]
    label = label_column(others, str(path), options)
    if label is None and path.stem.lower().startswith("label"):
        label = next(iter(others), None)
    names = [str(value) for value in columns[image]]
    labels = None if label is None else columns[label]
    rest = {name: values for name, values in columns.items() if name not in (image, label)}
    return ImageList(path, names, labels, rest)


def read_columns(path: Path) -> Columns:
    """All columns of a CSV, TSV or JSON lines file."""
    return _columns(path, *_read_lines(path))


def _read_lines(path: Path) -> tuple[str, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not text in UTF-8; save it again as UTF-8") from error
    except OSError as error:
        raise SourceError(f"{path}: {system_reason(error)}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise SourceError(f"{path}: empty; expected a line for each image")
    return text, lines


def _columns(path: Path, text: str, lines: Sequence[str]) -> dict[str, list[Any]]:
    if path.suffix.lower() == ".jsonl":
        return _json_columns(path, lines)
    return _csv_columns(path, text)


def _csv_columns(path: Path, text: str) -> dict[str, list[Any]]:
    first = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise SourceError(f"{path}: not a CSV file ({error})") from error
    header = [cell.strip() for cell in rows[0]]
    if os.path.splitext(header[0])[1].lower() in SUFFIXES:  # no names of columns, rows at once
        header = ["file", "label", *(f"column {i}" for i in range(3, len(header) + 1))]
        rows.insert(0, [])
    long = next((i for i, row in enumerate(rows) if len(row) > len(header)), None)
    if long is not None:
        raise SourceError(
            f"{path}: expected {len(header)} columns in each row, got {len(rows[long])} in row "
            f"{long + 1}; put quotes around cells that hold '{delimiter}'"
        )
    width = len(header)
    cells = [row + [""] * (width - len(row)) for row in rows[1:]]
    comma = "," if delimiter == ";" else "."  # of a decimal number
    return {name: _typed([row[i] for row in cells], comma) for i, name in enumerate(header) if name}


def _typed(cells: list[str], comma: str = ".") -> list[Any]:
    """Cells as numbers, true and false if all of the column are; else as words."""
    values: list[Any] = []
    for cell in map(str.strip, cells):
        try:
            value = json.loads(cell.replace(comma, ".")) if cell else None
        except (ValueError, RecursionError):
            return [cell.strip() or None for cell in cells]
        if not isinstance(value, int | float | None) or value in (float("inf"), -float("inf")):
            return [cell.strip() or None for cell in cells]
        values.append(value)
    return values


def _json_columns(path: Path, lines: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(lines))
    for i, line in enumerate(lines):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: line {i + 1} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise SourceError(f"{path}: line {i + 1}: expected an object, got {line:.60}")
        for name, value in values.items():
            columns[name][i] = value
    return dict(columns)


def _paths(path: Path, lines: Sequence[str]) -> ImageList:
    """``path label ...``: a word, numbers, or as many 0 and 1 in each line as there are classes."""
    names, rests = [], []
    for i, line in enumerate(lines):
        match = _PATH.fullmatch(line.strip())
        if match is None:
            raise SourceError(f"{path}: line {i + 1}: expected a path and labels, got {line:.60}")
        names.append(match["path"])
        rests.append(re.split(r"[\s,;]+", match["rest"].strip(" \t,;")) if match["rest"] else [])
    if not any(rests):
        return ImageList(path, names, None, {})
    widths = {len(rest) for rest in rests}
    flags = {word for rest in rests for word in rest} <= {"0", "1"}
    if flags and max(widths) > 2 and len(widths) > 1:
        wide = max(widths)
        short = next(i for i, rest in enumerate(rests) if len(rest) != wide)
        raise SourceError(
            f"{path}: line {short + 1}: expected {wide} flags 0 or 1, one for each class as in "
            f"other lines, got {len(rests[short])}"
        )
    if flags and len(widths) == 1 and max(widths) > 1:
        several = [[i for i, flag in enumerate(rest) if flag == "1"] for rest in rests]
    else:
        flat = iter(_typed([word for rest in rests for word in rest]))
        several = [[next(flat) for _ in rest] for rest in rests]
    if max(map(len, several)) <= 1:
        return ImageList(path, names, [next(iter(each), None) for each in several], {})
    return ImageList(path, names, several, {})


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
        wanted = compared(name.replace("\\", "/")).removeprefix("./").strip("/")
        places = by_name.get(wanted.rpartition("/")[2], [])
        exact = {compared((read.path.parent / wanted).absolute().as_posix()), f"/{wanted}"}
        found = [i for i in places if ends[i] in exact]
        if not found:
            tail = f"/{wanted}"
            found = [
                i
                for i in places
                if ends[i].endswith(tail) or os.path.splitext(ends[i])[0].endswith(tail)
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
