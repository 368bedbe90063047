"""From what a user writes or holds (a folder, a name, a table) to a source, and to one image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.data.folders import Listing, list_folder, open_folder, open_listed
from hashlens.data.hub import hub_images, open_dataset, open_hub
from hashlens.data.image import MAX_FILE_BYTES, RawImage, decode, image_name, read_file
from hashlens.data.labels import split_validation
from hashlens.data.lists import FOLDER_TABLE, LIST_SUFFIXES, join_list, open_list, read_list
from hashlens.data.remote import list_remote, read_remote
from hashlens.data.source import ImageStore, ReadOptions, Source, packed
from hashlens.data.tables import (
    MemoryImages,
    ParquetImages,
    open_arrow,
    open_frame,
    open_once,
    open_pairs,
    store_in_memory,
)
from hashlens.data.tars import TarImages, open_tars
from hashlens.data.vectors import open_npy, open_tables, open_vector_table, vector_source
from hashlens.errors import ImageError, SourceError, needs_extra
from hashlens.files import (
    FileState,
    Row,
    changed_ns,
    content_digest,
    is_remote,
    parse_row,
    path_uri,
    uri_path,
)
from hashlens.types import ImageInput

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # such as {000..010}
_SHAPES = (
    "expected a folder with one sub-folder per class, a .parquet, .csv, .npy or .tar file, "
    "FOLDER#train, 'FOLDER/*.parquet', digits, a data set's hub name as hub:NAME, or in Python a "
    "data set or table in memory"
)


def open_source(
    source: Any,
    *,
    exclude: Sequence[str] = (),
    strict: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    vector_column: str | None = None,
) -> Source:
    """Open images, or vectors, and labels.

    Parameters
    ----------
    source : str, Path, or data in memory
        A name: a folder (one sub-folder per class, or images alone), a ``.parquet`` file,
        ``FOLDER#PART`` for ``PART.parquet`` or the sub-folder PART, ``digits``,
        ``digits#train``, ``digits#test``, or ``hub:NAME[#SPLIT]``; ``OWNER/NAME`` that is no
        path is a hub name. ``FOLDER/*.parquet`` or ``FOLDER/{00..15}.parquet`` is several files.

        Or data in memory: a Hugging Face ``datasets.Dataset``, a pandas DataFrame or a pyarrow
        Table, each with a column ``image`` (or ``img``) and, where there are labels, a column
        ``label`` (or ``labels``); a torch ``Dataset`` or list of pairs (image, label). An image
        is encoded bytes, a path, a PIL image, or an array or tensor of pixels. A ``Source`` is
        returned as it is.

        Vectors, which are encoded in the place of images: a ``.npy`` file, an array or tensor
        (n, d) of floating numbers, or a table with a column of lists such as ``embedding``.
    exclude : sequence of str
        Patterns such as ``"*.tmp"`` or ``"2023/raw"``: files and folders to leave out, by their
        name or by their path below the folder.
    strict : bool
        Raise where a folder below may not be listed, instead of leaving it out.
    image_column, label_column, vector_column : str, optional
        Columns of a table; by default the first that is there of the names in
        docs/reference/sources.md.

    Returns
    -------
    Source
        Nothing is decoded yet, unless a torch ``Dataset`` has no ``targets``: its labels are
        then read by going through it once.

    Raises
    ------
    SourceError
        If it is not there, may not be read, is empty, or could mean several things.

    Examples
    --------
    >>> from hashlens import open_source
    >>> source = open_source("digits#test")
    >>> len(source), source.classes[:3], source.uris[0]
    (359, ('0', '1', '2'), 'digits#1')

    Pairs of image and label:

    >>> import numpy as np
    >>> grey = np.zeros((8, 8), np.uint8)
    >>> source = open_source([(grey, "dark"), (grey + 255, "light"), (grey + 9, "dark")])
    >>> source.classes, source.labels.tolist()
    (('dark', 'light'), [0, 1, 0])
    """
    if isinstance(source, Source):
        return source
    options = ReadOptions(tuple(exclude), strict, image_column, label_column, vector_column)
    if not isinstance(source, str | os.PathLike):
        return _open_in_memory(source, options)
    text = os.fspath(source)
    if not text.strip():
        raise SourceError(f"empty source: {_SHAPES}")
    if text == "digits" or text.startswith("digits#"):
        return _open_digits(text)
    if text.startswith("hub:"):
        return open_hub(text, text.removeprefix("hub:"), options)
    if is_remote(text):
        return _open_named(text, options)
    path = uri_path(text)
    if _exists(path):
        return _open_path(text, path, options)
    base, mark, part = os.path.expanduser(text).rpartition("#")
    if mark and base and _exists(Path(base)):
        return _open_part(text, Path(base), part, options)
    if "*" in text or _NUMBERS.search(text):
        return _open_named(text, options)
    name = base if mark else text
    is_local = os.path.exists(name.split("/")[0]) or name.lower().endswith(".parquet")
    if _HUB_NAME.fullmatch(name) and not is_local:
        try:
            return open_hub(text, text, options)
        except SourceError as error:
            raise SourceError(f"{text}: no such file or folder; {error}") from error
    raise SourceError(f"{image_name(text)}: no such file or folder; {_SHAPES}")


def load_image(image: ImageInput, *, size_hint: int | None = None) -> Image.Image:
    """Decode one image from a path, URI, bytes or pixels; see ``decode``."""
    return decode(fetch(image).raw, image_name(image), size_hint=size_hint)


def can_open(image: ImageInput, *, size_hint: int | None = None) -> bool:
    """Whether ``load_image`` opens it."""
    try:
        load_image(image, size_hint=size_hint)
    except ImageError:
        return False
    return True


class Fetched(NamedTuple):
    """An image that is not decoded yet, and how its file looked if it has one of its own."""

    raw: RawImage
    file: FileState | None = None


def fetch(image: ImageInput) -> Fetched:
    """Read what an image is decoded from; a file is read once, for content and digest."""
    if isinstance(image, Image.Image | np.ndarray | bytes):
        return Fetched(image)
    name = image_name(image)
    row = parse_row(image) if isinstance(image, str) else None
    try:
        if row is not None:
            return Fetched(_store(row).read(row.row))
        if isinstance(image, str) and is_remote(image):
            return Fetched(read_remote(image, MAX_FILE_BYTES))
        path = uri_path(image) if isinstance(image, str) else Path(image)
    except ImageError:
        raise
    except SourceError as error:
        raise ImageError(name, str(error).removeprefix(f"{name}: ")) from error
    except ValueError as error:
        raise ImageError(name, f"no name of a file ({error})") from error
    data, status = read_file(path, name)
    return Fetched(data, FileState(len(data), changed_ns(status), content_digest(data)))


def open_table(table: str, column: str | None = None) -> ParquetImages | TarImages:
    """A file that holds images, by its path or URI."""
    kind = TarImages if table.lower().endswith(".tar") else ParquetImages
    return open_once(kind, table, column)  # type: ignore[no-any-return]


def _store(row: Row) -> ImageStore | TarImages:
    """What holds the rows of a table."""
    table = row.table
    if table.lower().endswith(".npy"):
        raise SourceError("a vector, not an image")
    if row.is_in_file:
        return open_table(table, row.column)
    if table == "digits":
        return _digits()[0]
    if table.startswith("memory:"):
        return store_in_memory(table)
    name, _, split = table.removeprefix("hub:").rpartition("#")
    return hub_images(name, split)


def _open_in_memory(data: Any, options: ReadOptions) -> Source:
    # Libraries are known by their names: asking for a class would import each of them.
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}
    if "datasets.Dataset" in kinds:
        return open_dataset(data, options)
    if "pandas.DataFrame" in kinds:
        return open_vector_table(data, options) or open_frame(data, options)
    if {"pyarrow.Table", "pyarrow.lib.Table"} & kinds:
        return open_vector_table(data, options) or open_arrow(data, options)
    if getattr(data, "ndim", 0) == 2 and "float" in str(getattr(data, "dtype", "")):
        return vector_source(data, spec=f"{type(data).__name__} of {len(data):,} vectors")
    if isinstance(data, dict):
        raise SourceError(f"several splits ({', '.join(map(str, data))}): give one of them")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return open_pairs(data)
    raise SourceError(f"{type(data).__name__}: cannot be read row by row; {_SHAPES}")


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except PermissionError as error:
        raise SourceError(f"{image_name(str(path))}: no permission to read its folder") from error
    except (OSError, ValueError):
        return False
    return True


def _open_path(spec: str, path: Path, options: ReadOptions) -> Source:
    if path.is_dir():
        return open_directory(spec, path, options)
    if path.suffix.lower() == ".parquet":
        return open_tables(spec, [path], options)
    if path.suffix.lower() == ".npy":
        return open_npy(spec, path, options)
    if path.suffix.lower() == ".tar":
        return open_tars(spec, [os.path.abspath(path)], options)
    if path.suffix.lower() in LIST_SUFFIXES:
        return open_list(spec, path, options)
    raise SourceError(f"{image_name(spec)}: one file, but no source of many images; {_SHAPES}")


def find_folder(spec: str) -> tuple[Path, bool]:
    """The folder of ``FOLDER``, ``FOLDER#PART`` or ``FOLDER#*``; True with the last of these."""
    path = Path(os.path.abspath(uri_path(spec)))
    base, mark, part = os.fspath(path).rpartition("#")
    if not mark or path.exists() or not os.path.isdir(base):
        return path, False
    return Path(base, "" if part == "*" else part), part == "*"


def open_directory(
    spec: str,
    folder: Path,
    options: ReadOptions,
    *,
    all_classes: bool = False,
    listing: Listing | None = None,
) -> Source:
    """A folder of images, with what lists in it say of them, or of one parquet file.

    ``listing`` is what the folder holds, where that is known.
    """
    tables = _tables(folder)
    listing = listing or list_folder(folder, options)
    if not tables:
        lists = [
            read_list(path, options)
            for path in sorted(folder.iterdir())
            if FOLDER_TABLE.fullmatch(path.name) and path.is_file()
        ]
        listing.passed_over -= Counter(read.path.suffix.lower() for read in lists)
        # Where a list has the labels, the sub-folders need not be classes.
        labelled = any(read.labels is not None for read in lists)
        source = open_folder(spec, folder, listing, all_classes=all_classes or labelled)
        for read in lists:
            source = join_list(source, read)
        return source
    if len(listing.uris):
        name = next(iter(tables.values()))[0].name
        raise SourceError(f"{spec}: holds both images and {name}; name the file, or take it out")
    if len(tables) == 1:
        [(name, paths)] = tables.items()
        return _open_table(spec, name, paths, options)
    base = spec.rstrip("/")
    choices = " or ".join(f"{base}#{name}" for name in tables)
    raise SourceError(f"{spec}: holds {len(tables)} parquet files; name one: {choices}")


_PIECE = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def _tables(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder, or of the folder ``data`` in it, by name or part.

    Files that a part is cut into, such as ``train-00000-of-00002.parquet``, go together.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".parquet")
        if not files and (folder / "data").is_dir():
            files = sorted((folder / "data").glob("*.parquet"))
    except PermissionError as error:
        raise SourceError(
            f"{path_uri(str(folder))}: no permission to list this folder; allow reading it"
        ) from error
    tables: dict[str, list[Path]] = {}
    for path in files:
        match = _PIECE.fullmatch(path.stem)
        tables.setdefault(match["name"] if match else path.stem, []).append(path)
    return tables


def _open_table(spec: str, name: str, paths: Sequence[Path], options: ReadOptions) -> Source:
    source = open_tables(spec, paths, options)
    match = _PIECE.fullmatch(paths[0].stem)
    missing = int(match["count"]) - len(paths) if match else 0
    if missing:
        note = f"{missing} of the {len(paths) + missing} files of {name} are not there"
        return replace(source, notes=(*source.notes, note))
    return source


def _open_part(spec: str, base: Path, part: str, options: ReadOptions) -> Source:
    if not base.is_dir():
        raise SourceError(
            f"{image_name(spec)}: one row of a file names an image, not a source; use {base} itself"
        )
    tables = _tables(base)
    if part in tables:
        return _open_table(spec, part, tables[part], options)
    folder, all_classes = find_folder(spec)
    if part and folder.is_dir():
        return open_directory(spec, folder, options, all_classes=all_classes)
    names = [*tables, *sorted(entry.name for entry in base.iterdir() if entry.is_dir())]
    choices = ", ".join(f"#{name}" for name in names[:10]) or "nothing to choose"
    raise SourceError(f"{image_name(spec)}: no part '{part}' in {base}; there is {choices}")


def _open_named(spec: str, options: ReadOptions) -> Source:
    """What a URI or a pattern names: parquet files, tar files, or images."""
    head, chain, last = spec.rpartition("::")
    if chain and not is_remote(last):
        spec = f"{head}::{os.path.abspath(uri_path(last))}"
    named = _matches(spec)
    if not named:
        raise SourceError(f"{spec}: no file has such a name; check the folder")
    kinds = {os.path.splitext(name.partition("::")[0])[1].lower() for name, _ in named}
    names = [name for name, _ in named]
    if kinds == {".parquet"}:
        return open_tables(spec, names, options)
    if kinds == {".tar"}:
        return open_tars(spec, names, options)
    if spec in dict(named):  # a prefix
        named = list_remote(spec)
    listing = Listing()
    found = [(name, parts) for name, parts in named if listing.takes(parts, options)]
    listing.uris = packed(name if is_remote(name) else path_uri(name) for name, _ in found)
    return open_listed(spec, listing, [parts for _, parts in found])


def _matches(pattern: str) -> Sequence[tuple[str, tuple[str, ...]]]:
    """Files that a pattern names, in order, and the path of each below the folder before ``*``."""
    if numbers := _NUMBERS.search(pattern):
        first, last = numbers.groups()
        every = range(int(first), int(last) + 1)
        each = (pattern.replace(numbers[0], f"{n:0{len(first)}}", 1) for n in every)
        return [found for one in each for found in _matches(one)]
    if "*" not in pattern:
        return [(pattern, (os.path.basename(pattern),))]
    if is_remote(pattern):
        return list_remote(pattern)
    pattern = os.path.abspath(os.path.expanduser(pattern))
    folder = os.path.dirname(pattern.partition("*")[0])
    files = filter(os.path.isfile, sorted(glob(pattern, recursive=True)))
    return [(path, Path(path).relative_to(folder).parts) for path in files]


@cache
def _digits() -> tuple[MemoryImages, NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, without a download; and labels."""
    with needs_extra("the digits data set", "train"):
        from sklearn.datasets import load_digits
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels.flags.writeable = False
    return MemoryImages(pixels, pixels.__getitem__, table="digits"), data.target.astype(np.int64)


def _open_digits(spec: str) -> Source:
    """All digits, or a fixed stratified split of them."""
    store, labels = _digits()
    every = np.arange(len(store))
    train, test = split_validation(labels, 0.2, 2015)
    rows = {"": every, "train": train, "test": test}.get(spec.partition("#")[2])
    if rows is None:
        raise SourceError(f"{spec}: expected digits, digits#train or digits#test")
    return Source(spec, tuple(map(str, range(10))), labels, store, every).subset(rows)
