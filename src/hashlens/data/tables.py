"""Parquet files with an image column: rows read in row groups, kept in a bounded cache."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.data.labels import Labels, labels_from_arrow
from hashlens.data.source import Source
from hashlens.data.uris import RawImage
from hashlens.errors import MissingExtraError, SourceError
from hashlens.files import path_uri, row_uri

IMAGE_COLUMN = "image"
LABEL_COLUMN = "label"
CACHE_BYTES = 1 << 30
"""Encoded images that one open file keeps in memory; beyond it, row groups are read again."""


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

    def uri(self, row: int) -> str:
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


def open_parquet(path: str) -> ParquetImages:
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


def open_parquet_source(spec: str, path: Path) -> Source:
    """A parquet file as a source."""
    store = open_parquet(str(path))
    if len(store) == 0:
        raise SourceError(f"{path}: no rows; expected at least one image")
    labels = store.labels()
    return Source(
        spec, labels.classes, labels.labels, store, np.arange(len(store)), labels.matrix,
        labels.notes,
    )  # fmt: skip
