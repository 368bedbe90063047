"""Sources of vectors: ``.npy`` files, columns of tables, and arrays in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.data.image import RawImage
from hashlens.data.labels import Labels, class_names, labels_from_values
from hashlens.data.lists import TABLE_SUFFIXES, read_columns
from hashlens.data.source import Columns, ReadOptions, Source
from hashlens.data.tables import (
    IMAGE_COLUMNS,
    arrow_columns,
    find_column,
    label_column,
    labelled_source,
    open_file,
    open_parquet_source,
    plain_columns,
)
from hashlens.errors import InvalidInputError, SourceError
from hashlens.files import Uri, is_remote, parse_row, path_uri, row_uri, uri_path
from hashlens.types import Features

VECTOR_COLUMNS = ("embedding", "embeddings", "vector", "vectors", "emb", "feature", "features")
URI_COLUMNS = ("uri", "url", "image_uri", "image_url", *IMAGE_COLUMNS)
"""Names of columns, the first that is there is taken; case does not matter."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """The rows of a matrix, in memory or memory-mapped; a :class:`VectorStore`.

    ``names`` are the URIs of what the vectors stand for; without them a row is ``TABLE#ROW``.
    """

    values: NDArray[Any]
    table: str
    names: Sequence[str] | None = None

    @property
    def width(self) -> int:
        """Values of a vector."""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def uri(self, row: int) -> Uri:
        """What the vector stands for, or the row itself."""
        if self.names is None:
            return row_uri(self.table, row)
        name = self.names[row]
        held = parse_row(name)  # of a table that is no file, as an exported index names it
        whole = is_remote(name) or (held is not None and not held.is_in_file)
        return Uri(name) if whole else path_uri(uri_path(name))

    def read(self, row: int) -> RawImage:
        """No image."""
        raise SourceError("a vector, not an image")

    def gather(self, rows: NDArray[np.int64]) -> Features:
        """Vectors of these rows as float32; too large numbers become infinity."""
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.values[rows], np.float32)


def as_matrix(data: Any, where: str = "vectors") -> NDArray[Any]:
    """Vectors as an array (n, d) of floating numbers, or ``InvalidInputError`` that names the row.

    They may be a NumPy array, memory-mapped or not; a torch tensor; a pandas or Polars frame of
    numbers, or column of lists; an Arrow column of lists, or table of numbers; a list of lists.
    """
    if hasattr(data, "toarray"):
        raise InvalidInputError(
            f"{where}: sparse data is not supported; convert it with toarray(), or reduce it first"
        )
    if hasattr(data, "detach"):  # a tensor
        data = data.detach().cpu().numpy()
    elif type(data).__module__.startswith("pyarrow") and not hasattr(data, "column_names"):
        data = _arrow_matrix(data, where)
    elif hasattr(data, "__array__") and not isinstance(data, np.ndarray):  # tables and frames too
        data = np.asarray(data)
    if not isinstance(data, np.ndarray) or data.dtype == object:
        data = _stacked(list(data), where)
    if data.ndim == 2 and not data.shape[1]:
        raise InvalidInputError(
            f"{where}: 0 feature(s) (shape={data.shape}) while a minimum of 1 is required."
        )
    if data.ndim != 2:
        raise InvalidInputError(
            f"{where}: expected shape (n, d), got {data.shape}. Reshape your data: one vector is "
            "x.reshape(1, -1)"
        )
    if data.dtype.kind != "f":
        raise InvalidInputError(
            f"{where}: expected floating numbers, got {data.dtype}; convert them with "
            "astype('float32'); packed codes are no vectors: add those with add_encoded"
        )
    return data  # type: ignore[no-any-return]


def _stacked(rows: list[Any], where: str) -> NDArray[Any]:
    """Rows as an array; one without a vector becomes NaN."""
    held = [np.asarray(row) for row in rows if row is not None]
    width = next((row.shape for row in held), (0,))
    odd = next((i for i, row in enumerate(held) if row.shape != width), None)
    if odd is not None:
        raise InvalidInputError(
            f"{where}: expected {width[0] if width else 1} values in each row, got "
            f"{held[odd].size} in row {odd}"
        )
    if len(held) == len(rows):
        return np.stack(held) if held else np.zeros((0, 0), np.float32)
    missing = np.full(width, np.nan, np.float32)
    found = iter(held)
    return np.stack([missing if row is None else next(found) for row in rows])


def _arrow_matrix(column: Any, where: str) -> NDArray[Any]:
    """A column of lists of one length."""
    import pyarrow.compute as pc

    lengths = set(pc.unique(pc.list_value_length(column)).to_pylist())
    if len(lengths) != 1 or None in lengths:
        return _stacked(column.to_pylist(), where)
    flat = pc.list_flatten(column)
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def vector_source(
    data: Any,
    labels: Any = None,
    *,
    spec: str = "vectors",
    table: str = "memory:0",
    columns: Columns | None = None,
    options: ReadOptions | None = None,
    schema: Any = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Vectors (n, d), as for :func:`as_matrix`, as a source.

    ``labels`` has a word, a number or a list of these for each; otherwise ``columns``, what a table
    says of the vectors, may have a column of labels, and the Arrow ``schema`` its names of classes.
    """
    matrix = as_matrix(data, spec)
    if not len(matrix):
        raise SourceError(f"{spec}: no vectors; expected at least one")
    rest, label = dict(columns or {}), None
    for values in rest.values():
        if len(values) != len(matrix):
            raise SourceError(
                f"{spec}: expected a row of its table for each of the {len(matrix)} vectors, got "
                f"{len(values)} rows"
            )
    if labels is None and rest:
        label = label_column(rest, spec, options or ReadOptions())
        labels = rest.pop(label) if label is not None else None
    if labels is None:
        found = Labels.none(len(matrix), f"{spec} has no labels")
    else:
        labels = np.asarray(labels) if hasattr(labels, "__array__") else labels
        values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        if len(values) != len(matrix):
            raise InvalidInputError(
                f"labels: expected {len(matrix)}, one for each vector, got {len(values)}"
            )
        known = class_names(schema, label) if label is not None else None
        found = labels_from_values(values, f"{spec}, labels", known)
    uri = _uri_column(rest)
    names = None if uri is None else list(map(str, rest.pop(uri)))
    source = labelled_source(spec, Vectors(matrix, table, names), found, lambda: rest)
    return replace(source, notes=(*source.notes, *notes))


def _uri_column(columns: Columns) -> str | None:
    by_name = {name.lower(): name for name in columns}
    found = filter(None, map(by_name.get, URI_COLUMNS))
    return next((n for n in found if all(isinstance(v, str) and v for v in columns[n])), None)


def load_npy(path: Path) -> NDArray[Any]:
    """A ``.npy`` file of numbers, memory-mapped."""
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path}: not a whole .npy file of numbers ({error})") from error
    return values


def open_npy(spec: str, path: Path, options: ReadOptions) -> Source:
    """A ``.npy`` file, memory-mapped; the table of the same name next to it says what is known."""
    values = load_npy(path)
    tables = [path.with_suffix(suffix) for suffix in TABLE_SUFFIXES]
    columns = next((read_columns(table) for table in tables if table.is_file()), None)
    return vector_source(values, spec=spec, table=path_uri(path), columns=columns, options=options)


def open_tables(spec: str, paths: Sequence[Path | str], options: ReadOptions) -> Source:
    """Parquet files that belong together: of vectors, where a column holds some, or of images."""
    schema = open_file(os.fspath(paths[0]))[0].schema_arrow
    column = _arrow_vectors(schema, spec, options)
    if column is None:
        return open_parquet_source(spec, paths, options)
    import pyarrow as pa

    names = [column, *plain_columns(schema, {column})]
    table = pa.concat_tables(open_file(os.fspath(path))[0].read(columns=names) for path in paths)
    name = os.fspath(paths[0])
    return _of_arrow(table, column, spec, name if is_remote(name) else path_uri(name), options)


def open_vector_table(data: Any, options: ReadOptions) -> Source | None:
    """A pandas data frame or Arrow table with a column of vectors; None where it has none."""
    spec = f"{type(data).__module__.partition('.')[0]} table of {len(data):,} rows"
    if hasattr(data, "column_names"):
        column = _arrow_vectors(data.schema, spec, options)
        return None if column is None else _of_arrow(data, column, spec, "memory:0", options)
    kinds = {str(name): data[name].map(type).iloc[0] if len(data) else None for name in data}
    column = _vector_column(
        list(kinds),
        {name for name, kind in kinds.items() if kind in (list, np.ndarray)},
        {name for name, kind in kinds.items() if kind is not str},
        spec,
        options,
    )
    if column is None:
        return None
    columns = {str(name): data[name].tolist() for name in data if name != column}
    return vector_source(
        data[column], spec=spec, columns=columns, options=options, notes=_notes(column, columns)
    )


def _of_arrow(table: Any, column: str, spec: str, name: str, options: ReadOptions) -> Source:
    columns = arrow_columns(table, plain_columns(table.schema, {column}))
    return vector_source(
        table.column(column),
        spec=spec,
        table=name,
        columns=columns,
        options=options,
        schema=table.schema,
        notes=_notes(column, columns),
    )


def _arrow_vectors(schema: Any, spec: str, options: ReadOptions) -> str | None:
    import pyarrow.types as kinds

    held = {field.name: getattr(field.type, "value_type", None) for field in schema}
    return _vector_column(
        schema.names,
        {name for name, kind in held.items() if kind is not None and kinds.is_floating(kind)},
        {field.name for field in schema if "string" not in str(field.type)},
        spec,
        options,
    )


def _vector_column(
    names: Sequence[str], vectors: Set[str], encoded: Set[str], spec: str, options: ReadOptions
) -> str | None:
    """The column of vectors that was asked for, or that is known by its name.

    ``vectors`` are the columns of lists of numbers, ``encoded`` those that are no words. A table
    with encoded images is one of images, unless its column of vectors is named.
    """
    if options.vector_column is not None:
        return find_column(names, VECTOR_COLUMNS, spec, options.vector_column)
    images = {name for name in names if name.lower() in IMAGE_COLUMNS}
    if options.image_column is not None or images & encoded:
        return None
    by_name = {name.lower(): name for name in names if name in vectors}
    return next(filter(None, map(by_name.get, VECTOR_COLUMNS)), None)


def _notes(column: str, columns: Columns) -> tuple[str, ...]:
    paths = [name for name in columns if name.lower() in IMAGE_COLUMNS][:1]
    read = f"read as vectors, of column '{column}'; --image-column"
    return tuple(f"{read} {name} reads the images" for name in paths)
