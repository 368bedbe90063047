"""Tables of images: parquet files, and tables, data frames and lists of pairs in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from hashlens.data.image import RawImage
from hashlens.data.labels import Labels, class_names, labels_from_values
from hashlens.data.remote import open_remote
from hashlens.data.source import Columns, ImageStore, ReadOptions, Source, check_row
from hashlens.errors import SourceError, first_line, needs_extra
from hashlens.files import Uri, changed_ns, is_remote, path_uri, row_uri, uri_path
from hashlens.types import OWN_COLUMN

IMAGE_COLUMNS = (
    *("image", "img", "image_path", "image_file", "file_name", "filename", "file"),
    *("filepath", "file_path", "path", "jpg", "png"),
)
LABEL_COLUMNS = (
    *("label", "labels", "fine_label", "class", "class_name", "category", "target", "cls"),
)
"""Names of columns, the first that is there is taken; case does not matter."""
CACHE_BYTES = 1 << 30
"""Encoded images that all files keep in memory; beyond it, row groups are read again."""


def open_parquet_source(spec: str, paths: Sequence[Path | str], options: ReadOptions) -> Source:
    """A parquet file, or several that belong together, as a source."""
    stores = [open_once(ParquetImages, path, options.image_column) for path in paths]
    store = stores[0] if len(stores) == 1 else JoinedImages(stores)
    if len(store) == 0:
        raise SourceError(f"{paths[0]}: no rows; expected at least one image")
    first, schema = stores[0], stores[0].schema
    if any(other.schema.names != schema.names for other in stores[1:]):
        raise SourceError(f"{spec}: its {len(stores)} files have different columns")
    read = partial(_read_columns, stores)
    return table_source(spec, store, first.column, read, schema, options, where=first.path)


def _read_columns(stores: Sequence[ParquetImages], names: Sequence[str]) -> Columns:
    import pyarrow as pa

    parts = [store.values(names) for store in stores]
    try:
        table = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        name = stores[0].path
        raise SourceError(f"{name}: a column has another type in the files after it") from error
    return {name: table.column(name) for name in names}


def table_source(
    spec: str,
    store: ImageStore,
    image: str,
    read: Callable[[Sequence[str]], Columns],
    schema: Any,
    options: ReadOptions,
    where: str = "",
) -> Source:
    """Images of the column ``image``, with labels and metadata that ``read`` gives by column.

    ``schema`` is the table's Arrow schema, or for a data frame the list of its columns.
    """
    where = where or spec
    names = getattr(schema, "names", schema)
    label = label_column(names, where, options)
    if label is None:
        columns = ", ".join(names)
        labels = Labels.none(len(store), f"{where} has no column 'label' (columns: {columns})")
    else:
        given, known = read([label])[label], class_names(schema, label)
        given = given.to_pylist() if hasattr(given, "to_pylist") else given
        labels = labels_from_values(given, f"{where}, column '{label}'", known)
    others = [name for name in names if name not in (image, label)]
    if schema is not names:
        others = plain_columns(schema, {image, label})
    return labelled_source(spec, store, labels, partial(read, others))


def arrow_columns(table: Any, names: Sequence[str]) -> Columns:
    """Some columns of an Arrow table, as lists."""
    return {name: table.column(name).to_pylist() for name in names}


def plain_columns(schema: Any, taken: set[str | None]) -> list[str]:
    """Columns that can be metadata: words, numbers, yes or no, times, and lists of words."""
    import pyarrow.types as kinds

    def is_plain(field: Any) -> bool:
        if OWN_COLUMN.items() <= (field.metadata or {}).items():
            return False
        kind = field.type
        kind = getattr(kind, "value_type", kind) if kinds.is_dictionary(kind) else kind
        if kinds.is_nested(kind):
            return str(getattr(kind, "value_type", "")).endswith(("string", "string_view"))
        return not (kinds.is_null(kind) or "binary" in str(kind))

    return [field.name for field in schema if field.name not in taken and is_plain(field)]


def open_frame(frame: Any, options: ReadOptions) -> Source:
    """A pandas DataFrame as a source."""
    spec = f"pandas.DataFrame of {len(frame):,} rows"
    names = [str(name) for name in frame.columns]
    image = find_column(names, IMAGE_COLUMNS, spec, options.image_column)
    store = MemoryImages(frame, frame[image].iloc.__getitem__, is_quick=True)

    def read(columns: Sequence[str]) -> Columns:
        held = ((name, frame[name]) for name in columns)
        return {
            name: cells.astype(object).where(cells.notna(), None).tolist() for name, cells in held
        }

    return table_source(spec, store, image, read, names, options)


def open_arrow(table: Any, options: ReadOptions) -> Source:
    """A pyarrow Table as a source."""
    spec = f"pyarrow.Table of {len(table):,} rows"
    image = find_column(table.column_names, IMAGE_COLUMNS, spec, options.image_column)
    store = MemoryImages(table, table.column(image).__getitem__, is_quick=True)
    return table_source(spec, store, image, partial(arrow_columns, table), table.schema, options)


def label_column(names: Iterable[str], where: str, options: ReadOptions) -> str | None:
    names = list(names)
    if options.label_column is None and not {n.lower() for n in names} & set(LABEL_COLUMNS):
        return None
    return find_column(names, LABEL_COLUMNS, where, options.label_column)


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
    # Without NumPy or torch: numbers, words, or lists of them.
    labels = [each.tolist() if hasattr(each, "tolist") else each for each in _pair_labels(pairs)]
    inner = getattr(pairs, "dataset", None)  # of a torch.utils.data.Subset
    names = getattr(pairs, "classes", getattr(inner, "classes", None))
    names = names if isinstance(names, Sequence) else None
    store = MemoryImages(pairs, partial(cell_of, pairs, 0))
    return labelled_source(spec, store, labels_from_values(labels, f"{spec}, labels", names))


def labelled_source(
    spec: str, store: ImageStore, labels: Labels, columns: Callable[[], Columns] | None = None
) -> Source:
    """All rows of a store, with their labels."""
    classes, found, matrix, notes = labels
    rows = np.arange(len(store))
    return Source(spec, classes, found, store, rows, matrix, notes, columns=columns)


def find_column(
    columns: Iterable[str], names: tuple[str, ...], where: str, asked: str | None = None
) -> str:
    """The column that was asked for, else the first of these names that a table has."""
    columns = list(map(str, columns))
    by_name = {name.lower(): name for name in reversed(columns)}
    found = next((by_name[name] for name in names if name in by_name), None)
    if asked is not None:
        found = asked if asked in columns else None
    if found is None:
        kind = "label" if names is LABEL_COLUMNS else "vector" if "vector" in names else "image"
        raise SourceError(
            f"{where}: expected a column '{asked or names[0]}', got {', '.join(columns)}; name "
            f"the one of the {kind}s with --{kind}-column"
        )
    return found


_IN_MEMORY: WeakValueDictionary[str, MemoryImages] = WeakValueDictionary()


class MemoryImages:
    """Images of a data set or table in memory, by their rows.

    Their URIs are those of their files if they have some and if looking a value up is quick;
    otherwise ``TABLE#ROW``, which of ``memory:NUMBER`` is opened as long as the source exists.
    """

    def __init__(
        self, data: Any, value: Callable[[int], Any], *, is_quick: bool = False, table: str = ""
    ) -> None:
        self.table = table or f"memory:{id(data):x}"
        self._data, self._value, self._is_quick, self._named = data, value, is_quick, table
        _IN_MEMORY[self.table] = self

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(MemoryImages, is_quick=self._is_quick, table=self._named)
        return make, (self._data, self._value)

    def __len__(self) -> int:
        return len(self._data)

    def uri(self, row: int) -> Uri:
        """Path of the image's file, or ``TABLE#ROW``."""
        if self._is_quick:
            value = _held(self._value(row))
            if isinstance(value, str | os.PathLike):
                return Uri(value) if is_remote(str(value)) else path_uri(value)
        return row_uri(self.table, row)

    def read(self, row: int) -> RawImage:
        """What the row holds: encoded bytes, a file, or pixels."""
        check_row(row, len(self), self._named and f"{self._named}: ")
        return raw_image(self._value(row))


def store_in_memory(table: str) -> MemoryImages:
    """The store whose rows are named ``TABLE#ROW``."""
    try:
        return _IN_MEMORY[table]
    except KeyError:
        raise SourceError(
            "was in a data set in memory, which this process does not hold (any more)"
        ) from None


def _held(cell: Any) -> Any:
    """What a cell holds; the library datasets writes ``bytes``, ``path`` or both."""
    cell = cell.as_py() if hasattr(cell, "as_py") else cell  # of Arrow
    if not isinstance(cell, dict):
        return cell
    return cell.get("path") if cell.get("bytes") is None else cell["bytes"]


def raw_image(value: Any) -> RawImage:
    """An image as a cell of a table, or a torch Dataset, holds it."""
    value = _held(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return Uri(value) if is_remote(str(value)) else uri_path(os.fspath(value))
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


def cell_of(rows: Any, column: Any, row: int) -> Any:
    """One cell of what is read row by row."""
    return rows[row][column]


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


def open_once(kind: Callable[..., Any], path: str | Path, column: str | None = None) -> Any:
    """A file of images, opened once a process as long as it does not change.

    ``column`` holds the images; by default it is found by its name.
    """
    name = str(path)
    absolute, state = name if is_remote(name) else os.path.abspath(uri_path(name)), (0, 0)
    with suppress(OSError):  # of one that is elsewhere, or not there: opening says so
        status = os.stat(absolute)
        state = changed_ns(status), status.st_size
    return _opened(kind, absolute, column, *state)


@lru_cache(maxsize=8)
def _opened(
    kind: Callable[..., Any], path: str, column: str | None, changed: int, size: int
) -> Any:
    return kind(path, column)


class ParquetImages:
    """The image column of a parquet file. Any thread may read; pickles as its path alone.

    A source may have more files than a process may hold open: each is opened to read a row group.
    """

    _lock = threading.Lock()
    _groups: ClassVar[OrderedDict[tuple[ParquetImages, int], Any]] = OrderedDict()  # of all files

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path = path
        self._asked = column
        file, self.status = open_file(path)
        self._metadata = metadata = file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.schema = file.schema_arrow
        self.column = find_column(self.schema.names, IMAGE_COLUMNS, path, column)
        self._check_image_column()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_once, (ParquetImages, self.path, self._asked)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def uri(self, row: int) -> Uri:
        """``/abs/x.parquet#ROW``; with the column's name where that was chosen."""
        table = self.path if is_remote(self.path) else path_uri(self.path)
        return row_uri(table, row, self._asked)

    def read(self, row: int) -> RawImage:
        """Encoded bytes of one row, or the file that it names."""
        check_row(row, len(self))
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = _held(self._group(group)[row - int(self._starts[group])])
        if value is None:
            raise SourceError("no image bytes in this row")
        return bytes(value) if isinstance(value, bytes) else near(value, self.path)

    def values(self, columns: Sequence[str]) -> Any:
        """Other columns, whole, as an Arrow table."""
        return self._open().read(columns=list(columns))

    def _open(self) -> Any:
        file, status = open_file(self.path, self._metadata)
        if status and self.status and not os.path.samestat(status, self.status):
            raise SourceError(f"{self.path}: another file came there since it was opened")
        return file

    def _group(self, group: int) -> Any:
        key = (self, group)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            file = self._open()
            try:
                column = file.read_row_group(group, columns=[self.column])
            except Exception as error:  # pyarrow raises its own kinds on damaged pages
                raise SourceError(f"row group {group} is damaged ({first_line(error)})") from error
            values = column.column(self.column).combine_chunks()
            self._groups[key] = values
            held = sum(kept.nbytes for kept in self._groups.values())
            while held > CACHE_BYTES and len(self._groups) > 1:
                held -= self._groups.popitem(last=False)[1].nbytes
            return values

    def _check_image_column(self) -> None:
        kind = self.schema.field(self.column).type
        fields = [kind.field(i) for i in range(kind.num_fields)]
        kinds = [f.type for f in fields if f.name in ("bytes", "path")] or [kind]
        held = [str(getattr(each, "value_type", each)) for each in kinds]  # of a dictionary
        readable = ("binary", "large_binary", "fixed_size_bin", "string", "large_string")
        if not any(each.startswith(readable) for each in held):
            raise SourceError(
                f"{self.path}: column '{self.column}' must hold encoded images, their paths, or "
                f"structs with 'bytes' or 'path'; got {kind}; name another with --image-column"
            )


class JoinedImages:
    """Several stores one after the other, such as the files that a split is cut into."""

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        self.stores = tuple(stores)
        self._starts = np.cumsum([0, *map(len, self.stores)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def uri(self, row: int) -> str:
        """As the store of the row names it."""
        store, inside = self._place(row)
        return store.uri(inside)

    def read(self, row: int) -> RawImage:
        """As the store of the row reads it."""
        store, inside = self._place(row)
        return store.read(inside)

    def _place(self, row: int) -> tuple[ImageStore, int]:
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.stores[at], row - int(self._starts[at])


def near(name: str, table: str | Path) -> Path | Uri:
    """The file that a table names: next to the table if it is there, else as it is written."""
    if len(name) > 4096:  # such as a picture in base64
        raise SourceError(f"expected a path, got a text of {len(name):,} characters")
    if is_remote(name):
        return Uri(name)
    if is_remote(str(table)):
        return Uri(f"{str(table).rpartition('/')[0]}/{name}")
    for each in (name, name.replace("\\", "/")):  # as Windows writes it
        found = Path(table).parent / uri_path(each)
        if os.path.exists(found):
            return found
    return uri_path(name)


def open_file(path: str, metadata: Any = None) -> tuple[Any, os.stat_result | None]:
    """A parquet file, here or behind a URI, whose schema is known; what the system says of it."""
    with needs_extra("reading parquet files", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    remote = open_remote(path) if is_remote(path) else None
    try:
        if remote is not None:
            return pq.ParquetFile(remote, metadata=metadata), None
        file = pa.OSFile(path)  # not mapped: a mapped file that is cut ends the process
        return pq.ParquetFile(file, metadata=metadata), os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise SourceError(f"{path}: no permission to read this file") from error
    except Exception as error:  # pyarrow raises its own kinds on damaged files
        raise SourceError(f"{path}: not a whole parquet file ({first_line(error)})") from error
