"""Tables of images: parquet files, and tables, data frames and lists of pairs in memory."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from hashlens.data.image import RawImage
from hashlens.data.labels import Labels, labels_from_arrow
from hashlens.data.source import ImageStore, Source
from hashlens.errors import MissingExtraError, SourceError
from hashlens.files import Uri, path_uri, row_uri, uri_path

IMAGE_COLUMN = "image"
LABEL_COLUMN = "label"
IMAGE_COLUMNS = (IMAGE_COLUMN, "img")
LABEL_COLUMNS = (LABEL_COLUMN, "labels")
CACHE_BYTES = 1 << 30
"""Encoded images that one open file keeps in memory; beyond it, row groups are read again."""


def open_parquet_source(spec: str, path: Path) -> Source:
    """A parquet file as a source."""
    store = open_parquet(path)
    if len(store) == 0:
        raise SourceError(f"{path}: no rows; expected at least one image")
    return labelled_source(spec, store, store.labels())


def open_frame(frame: Any) -> Source:
    """A pandas DataFrame as a source."""
    spec = f"pandas.DataFrame of {len(frame):,} rows"
    images = frame[find_column(frame.columns, IMAGE_COLUMNS, spec)]
    store = MemoryImages(frame, images.iloc.__getitem__, is_quick=True)
    label = next((name for name in LABEL_COLUMNS if name in frame.columns), None)
    if label is None:
        return labelled_source(
            spec, store, Labels.none(len(frame), f"{spec} has no column 'label'")
        )
    values = _arrow().array(frame[label], from_pandas=True)
    if _arrow().types.is_floating(values.type):  # pandas' whole numbers where some are missing
        try:
            values = values.cast(_arrow().int64())
        except _arrow().ArrowInvalid:
            pass  # refused below with the type's name
    return labelled_source(spec, store, labels_from_arrow(values, None, f"{spec}, '{label}'"))


def open_arrow(table: Any) -> Source:
    """A pyarrow Table as a source."""
    spec = f"pyarrow.Table of {len(table):,} rows"
    images = table.column(find_column(table.column_names, IMAGE_COLUMNS, spec))
    store = MemoryImages(table, partial(_scalar, images), is_quick=True)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if label is None:
        return labelled_source(
            spec, store, Labels.none(len(table), f"{spec} has no column 'label'")
        )
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    where = f"{spec}, '{label}'"
    return labelled_source(spec, store, labels_from_arrow(table.column(label), metadata, where))


def open_pairs(pairs: Any) -> Source:
    """A torch Dataset, or another sequence, of pairs (image, label) as a source."""
    spec = f"{type(pairs).__name__} of {len(pairs):,} pairs"
    if not len(pairs):
        raise SourceError(f"{spec}: no images; expected at least one")
    first = pairs[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise SourceError(
            f"{spec}: expected pairs (image, label), got an item of type {type(first).__name__}; "
            "for images without labels write (image, None)"
        )
    labels = [_plain(label) for label in _pair_labels(pairs)]
    inner = getattr(pairs, "dataset", None)  # of a torch.utils.data.Subset
    names = getattr(pairs, "classes", getattr(inner, "classes", None))
    feature = {"names": list(names)} if isinstance(names, Sequence) else {}
    metadata = json.dumps({"info": {"features": {"label": feature}}}, default=str).encode()
    try:
        column = _arrow().array(labels)
    except (_arrow().ArrowInvalid, _arrow().ArrowTypeError) as error:
        raise SourceError(
            f"{spec}: labels must be all whole numbers, all words, or lists of either "
            f"({_first_line(error)})"
        ) from error
    store = MemoryImages(pairs, partial(_image_of_pair, pairs), is_quick=False)
    return labelled_source(spec, store, labels_from_arrow(column, metadata, f"{spec}, labels"))


def labelled_source(spec: str, store: ImageStore, labels: Labels) -> Source:
    """All rows of a store, with their labels."""
    rows = np.arange(len(store))
    return Source(spec, labels.classes, labels.labels, store, rows, labels.matrix, labels.notes)


def find_column(columns: Iterable[str], names: tuple[str, ...], where: str) -> str:
    """The first of these names that a table has."""
    columns = list(columns)
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise SourceError(
            f"{where}: expected a column '{names[0]}', got {', '.join(map(str, columns))}; rename "
            "the column that holds the images"
        )
    return found


_IN_MEMORY: WeakValueDictionary[str, MemoryImages] = WeakValueDictionary()


class MemoryImages:
    """Images of a data set or table in memory, by their rows.

    Their URIs are those of their files if they have some and if looking a value up is quick;
    otherwise ``memory:NUMBER#ROW``, which this process can open as long as the source exists.
    """

    def __init__(self, data: Any, value: Callable[[int], Any], *, is_quick: bool) -> None:
        self.table = f"memory:{id(data):x}"
        self._data, self._value, self._is_quick = data, value, is_quick
        _IN_MEMORY[self.table] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(MemoryImages, is_quick=self._is_quick), (self._data, self._value)

    def __len__(self) -> int:
        return len(self._data)

    def uri(self, row: int) -> Uri:
        """Path of the image's file, or ``memory:NUMBER#ROW``."""
        if self._is_quick:
            value = self._value(row)
            if isinstance(value, dict) and value.get("bytes") is None:
                value = value.get("path")
            if isinstance(value, str | os.PathLike):
                return path_uri(value)
        return row_uri(self.table, row)

    def read(self, row: int) -> RawImage:
        """What the row holds: encoded bytes, a file, or pixels."""
        if not 0 <= row < len(self):
            raise SourceError(f"expected a row from 0 to {len(self) - 1}, got {row}")
        return raw_image(self._value(row))


def store_in_memory(table: str) -> MemoryImages:
    """The store whose rows are named ``TABLE#ROW``."""
    try:
        return _IN_MEMORY[table]
    except KeyError:
        raise SourceError(
            "was in a data set in memory, which this process does not hold (any more)"
        ) from None


def raw_image(value: Any) -> RawImage:
    """An image as a cell of a table, or a torch Dataset, holds it."""
    if isinstance(value, dict):  # as the library datasets writes it
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return uri_path(os.fspath(value))
    if isinstance(value, Image.Image):
        return value
    if hasattr(value, "detach"):  # a tensor: channels first, as torchvision makes it
        value = value.detach().cpu().numpy()
        if value.ndim == 3:
            value = np.moveaxis(value, 0, -1)
        if value.dtype.kind == "f":
            if value.size and not 0 <= value.min() <= value.max() <= 1:
                raise SourceError(
                    "expected a tensor of values from 0 to 1; leave Normalize out of the transforms"
                )
            value = np.rint(value * 255).astype(np.uint8)
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        raise SourceError("no image in this row")
    raise SourceError(
        f"expected bytes, a path, a PIL image, an array or a tensor, got {type(value).__name__}"
    )


def _scalar(column: Any, row: int) -> Any:
    return column[row].as_py()


def _image_of_pair(pairs: Any, row: int) -> Any:
    return pairs[row][0]


def _pair_labels(pairs: Any) -> Iterable[Any]:
    """Labels of a torch Dataset, without decoding its images where it keeps them apart."""
    inner, indices = getattr(pairs, "dataset", None), getattr(pairs, "indices", None)
    if inner is not None and indices is not None:  # torch.utils.data.Subset
        labels = list(_pair_labels(inner))
        return [labels[i] for i in indices]
    targets = getattr(pairs, "targets", None)
    changed = getattr(pairs, "target_transform", None) is not None
    if targets is None or changed or len(targets) != len(pairs):
        return (pairs[row][1] for row in range(len(pairs)))
    return targets  # type: ignore[no-any-return]


def _plain(label: Any) -> Any:
    """A label without NumPy or torch: a number, a word, or a list of them."""
    return label.tolist() if hasattr(label, "tolist") else label


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("reading tables", "train") from error
    return pyarrow


def open_parquet(path: str | Path) -> ParquetImages:
    """The file, opened once a process as long as it does not change."""
    absolute = os.path.abspath(path)
    try:
        status = os.stat(absolute)
    except OSError:
        return ParquetImages(absolute)  # raises with the reason
    return _opened(absolute, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _opened(path: str, mtime: int, size: int) -> ParquetImages:
    return ParquetImages(path)


class ParquetImages:
    """The image column of a parquet file. Any thread may read; pickles as its path alone."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._file = _open_file(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._check_image_column()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_parquet, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def uri(self, row: int) -> Uri:
        """``/abs/x.parquet#ROW``."""
        return row_uri(path_uri(self.path), row)

    def read(self, row: int) -> RawImage:
        """Encoded bytes of one row."""
        if not 0 <= row < len(self):
            raise SourceError(f"expected a row from 0 to {len(self) - 1}, got {row}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = self._group(group)[row - int(self._starts[group])].as_py()
        if value is None:
            raise SourceError("no image bytes in this row")
        return bytes(value)

    def labels(self) -> Labels:
        """The label column, in words of classes."""
        schema = self._file.schema_arrow
        if LABEL_COLUMN not in schema.names:
            columns = ", ".join(schema.names)
            note = f"{self.path} has no column '{LABEL_COLUMN}' (columns: {columns})"
            return Labels.none(len(self), note)
        column = self._file.read(columns=[LABEL_COLUMN]).column(LABEL_COLUMN)
        metadata = (schema.metadata or {}).get(b"huggingface")
        return labels_from_arrow(column, metadata, f"{self.path}, column '{LABEL_COLUMN}'")

    def _group(self, group: int) -> Any:
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            try:
                column = self._file.read_row_group(group, columns=[IMAGE_COLUMN])
            except Exception as error:  # pyarrow raises its own kinds on damaged pages
                raise SourceError(f"row group {group} is damaged ({_first_line(error)})") from error
            values = _bytes_of(column.column(IMAGE_COLUMN).combine_chunks())
            self._groups[group] = values
            held = sum(kept.nbytes for kept in self._groups.values())
            while held > CACHE_BYTES and len(self._groups) > 1:
                held -= self._groups.popitem(last=False)[1].nbytes
            return values

    def _check_image_column(self) -> None:
        import pyarrow as pa

        schema = self._file.schema_arrow
        if IMAGE_COLUMN not in schema.names:
            raise SourceError(
                f"{self.path}: expected a column '{IMAGE_COLUMN}', got {', '.join(schema.names)}; "
                "rename the column that holds the encoded images"
            )
        kind = schema.field(IMAGE_COLUMN).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise SourceError(
                f"{self.path}: column '{IMAGE_COLUMN}' must be binary, or a struct with a binary "
                f"field 'bytes'; got {schema.field(IMAGE_COLUMN).type}"
            )


def _bytes_of(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):  # columns too long for one array of 32-bit offsets
        return pa.chunked_array([_bytes_of(chunk) for chunk in column.chunks])
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _open_file(path: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading parquet files", "train") from error
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise SourceError(f"{path}: no permission to read this file") from error
    except Exception as error:  # pyarrow raises its own kinds on damaged files
        raise SourceError(f"{path}: not a whole parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
