"""A source: images, or vectors, that can be read one by one, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain, islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hashlens.data.image import RawImage, decode
from hashlens.errors import ImageError, InvalidInputError, SourceError
from hashlens.files import Uri, compared, is_remote, uri_path


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read; see ``open_source``."""

    exclude: tuple[str, ...] = ()
    strict: bool = False
    image_column: str | None = None
    label_column: str | None = None
    vector_column: str | None = None

    def excludes(self, name: str, path: str) -> bool:
        """Whether a pattern fits a file or folder: its name, or its path below the root."""
        texts = compared(name), compared(path)
        return any(fnmatchcase(text, compared(each)) for each in self.exclude for text in texts)


BLOCK = 4096  # rows of a table, or vectors, that are read at a time
Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""Values of a table by column."""


def plain_cells(columns: Columns, row: int) -> dict[str, Any]:
    """One row of a table as metadata; empty cells are left out."""
    cells = {name: _plain_cell(values[row]) for name, values in columns.items()}
    return {name: cell for name, cell in cells.items() if cell is not None}


def _plain_cell(value: Any) -> Any:
    """A value as metadata takes it; None where there is none."""
    if read := getattr(value, "item", getattr(value, "as_py", None)):  # of NumPy or Arrow
        value = read()
    if value is None or value != value or value == "":  # NaN is no value
        return None
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, str | int | float | list) else str(value)


def check_row(row: int, rows: int, where: str = "") -> None:
    """Refuse a row that a store does not have."""
    if not 0 <= row < rows:
        raise SourceError(f"{where}expected a row from 0 to {rows - 1}, got {row}")


class ImageStore(Protocol):
    """Where a source's images are. Stores are cheap to hold and to pickle."""

    def __len__(self) -> int: ...

    def uri(self, row: int) -> str:
        """Name of an image that ``load_image`` opens."""
        ...

    def read(self, row: int) -> RawImage:
        """Encoded bytes, file or pixels of an image."""
        ...


@runtime_checkable
class VectorStore(ImageStore, Protocol):
    """Where a source's vectors are, if it has some in the place of images."""

    width: int

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of these rows, (n, width)."""
        ...


def packed(texts: Iterable[str | None] = ()) -> NDArray[Any]:
    """Texts as one array, so that no object is held of each."""
    rest, kind = iter(texts), np.dtypes.StringDType(na_object=None)
    blocks = chain([[]], iter(lambda: list(islice(rest, BLOCK)), []))  # `fromiter` spoils memory
    return np.concatenate([np.array(block, kind) for block in blocks])


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are files, by the URIs of their paths."""

    uris: Sequence[str] | NDArray[Any]

    def __len__(self) -> int:
        return len(self.uris)

    def uri(self, row: int) -> Uri:
        """Absolute path, or a ``file:`` URI for names that are not UTF-8."""
        return Uri(self.uris[row])

    def read(self, row: int) -> RawImage:
        """The file, here or elsewhere."""
        uri = self.uri(row)
        return uri if is_remote(uri) else uri_path(uri)


class Uris(Sequence[str]):
    """URIs of a store's rows, made when asked for."""

    def __init__(self, store: ImageStore, rows: NDArray[np.int64]) -> None:
        self._store = store
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Uris(self._store, self._rows[index])
        return self._store.uri(int(self._rows[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Source:
    """Images with their labels; reading happens at ``load``.

    Parameters
    ----------
    spec : str
        What was asked for, such as ``photos/`` or ``digits#train``.
    classes : tuple of str
        Class names; empty where nothing is labelled.
    labels : ndarray of shape (n,), int64
        Position in ``classes``; -1 is unlabelled. Of a multi-label source, each image's first
        class.
    store : ImageStore
        Where the images are.
    rows : ndarray of shape (n,), int64
        This source's rows of the store.
    label_matrix : ndarray of shape (n, c), bool, optional
        Multi-label sources only: which of the c classes each image has.
    notes : tuple of str
        What a person should know about how the source was read.
    passed_over : mapping of str to int
        Files of a folder that are no images here, by suffix.
    columns : callable, optional
        Reads the other columns of a table: lists by name, by the store's rows.
    """

    spec: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    store: ImageStore
    rows: NDArray[np.int64]
    label_matrix: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = field(default=())
    passed_over: Mapping[str, int] = field(default_factory=dict)
    columns: Callable[[], Columns] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def uris(self) -> Sequence[str]:
        """One URI per image; each can be opened by ``load_image``."""
        return Uris(self.store, self.rows)

    @property
    def vectors(self) -> VectorStore | None:
        """The store, where it holds vectors; None where it holds images."""
        return self.store if isinstance(self.store, VectorStore) else None

    @property
    def inputs(self) -> Iterable[Any]:
        """What an encoder takes: the URI of each image, or each vector."""
        store = self.vectors
        if store is None:
            return self.uris
        starts = range(0, len(self), BLOCK)
        return (one for at in starts for one in store.gather(self.rows[at : at + BLOCK]))

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.label_matrix is not None

    @property
    def targets(self) -> NDArray[np.int64] | NDArray[np.bool_]:
        """The class of each image, or which of the classes each has."""
        return self.labels if self.label_matrix is None else self.label_matrix

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Positions of the images that have a label."""
        return np.flatnonzero(self.labels >= 0)

    def label_name(self, i: int) -> str | None:
        """Class name of image i; None where it is unlabelled."""
        label = int(self.labels[i])
        return None if label < 0 else self.classes[label]

    @cached_property
    def _columns(self) -> Columns:
        return self.columns() if self.columns is not None else {}

    def metadata(self, i: int) -> dict[str, Any]:
        """What the other columns of a table say of image i; empty cells are left out."""
        return plain_cells(self._columns, int(self.rows[i]))

    def load(self, i: int, *, size_hint: int | None = None, strict: bool = False) -> Image.Image:
        """Decode image i, upright, in mode L or RGB.

        Parameters
        ----------
        i : int
            Position in this source.
        size_hint : int, optional
            As in ``load_image``.
        strict : bool
            Refuse a JPEG that lacks its last bytes.

        Raises
        ------
        ImageError
            If it cannot be read; names the image.
        """
        row = int(self.rows[i])
        name = self.store.uri(row)
        try:
            raw = self.store.read(row)
        except ImageError:
            raise
        except SourceError as error:
            raise ImageError(name, str(error)) from error
        return decode(raw, name, size_hint=size_hint, strict=strict)

    def subset(self, rows: ArrayLike) -> Source:
        """The same source with only these positions, in this order.

        Parameters
        ----------
        rows : array_like of int or bool
            Positions in this source, or a mask over it.

        Raises
        ------
        InvalidInputError
            If a position is outside the source, or a mask has another length.
        """
        positions = self._positions(rows)
        matrix = self.label_matrix
        return replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            label_matrix=None if matrix is None else matrix[positions],
        )

    def _positions(self, rows: ArrayLike) -> NDArray[np.int64]:
        given: NDArray[Any] = np.asarray(rows)
        if given.dtype == np.bool_ and given.shape == (len(self),):
            return np.flatnonzero(given)
        if given.size == 0:
            return np.zeros(0, np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise InvalidInputError(
                f"rows: expected whole numbers in one dimension, or a mask of {len(self)} values, "
                f"got {given.dtype} of shape {given.shape}"
            )
        if given.min() < 0 or given.max() >= len(self):
            raise InvalidInputError(
                f"rows: expected 0 to {len(self) - 1}, got {given.min()} to {given.max()}"
            )
        return given.astype(np.int64)
