"""Data sets of the ``datasets`` library: by their name on a hub, or as they are in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from http import HTTPStatus
from importlib import import_module
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from hashlens.data.source import Columns, ReadOptions, Source
from hashlens.data.tables import IMAGE_COLUMNS, MemoryImages, cell_of, find_column, table_source
from hashlens.errors import SourceError, first_line, needs_extra

_ANSWERS_WITHIN = 5.0  # seconds


@contextmanager
def one_try(endpoint: str | None = None) -> Iterator[None]:
    """Let libraries of the model hub read their caches alone while the hub does not answer.

    Each of them would try for half a minute, and print every try.
    """
    endpoint = endpoint or os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_ANSWERS_WITHIN).close()
        answered = True
    except HTTPError as error:
        answered = error.code < HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, ValueError):
        answered = False
    loaded: list[Any] = []
    if not answered:
        with suppress(ImportError):
            loaded.append(import_module("huggingface_hub.constants"))
        if "datasets" in sys.modules:
            loaded.append(import_module("datasets.config"))
    before = [module.HF_HUB_OFFLINE for module in loaded]
    for module in loaded:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(loaded, before, strict=True):
            module.HF_HUB_OFFLINE = value


def open_hub(spec: str, name: str, options: ReadOptions) -> Source:
    """A data set of the hub, ``NAME`` or ``NAME#SPLIT``, as a source."""
    name, mark, split = name.partition("#")
    if not name or (mark and not split):
        raise SourceError(f"{spec}: expected hub:NAME or hub:NAME#SPLIT")
    if os.path.isdir(os.path.expanduser(name)):
        name = os.path.abspath(os.path.expanduser(name))
    if not split:
        library = _library()
        try:
            with _reaching(name):
                splits = library.get_dataset_split_names(name)
        except Exception as error:
            raise _not_loaded(name, error) from error
        if len(splits) != 1:
            choices = " or ".join(f"hub:{name}#{choice}" for choice in splits)
            raise SourceError(f"{spec}: several splits; name one: {choices}")
        split = str(splits[0])
    store, data = hub_images(name, split, options.image_column), _load(name, split)
    where = store.table
    image, schema = _image_column(data, where, options), data.features.arrow_schema
    return table_source(spec, store, image, partial(_read, data), schema, options, where)


def open_dataset(data: Any, options: ReadOptions) -> Source:
    """A ``datasets.Dataset`` as a source."""
    spec = f"datasets.Dataset of {len(data):,} rows"
    image, schema = _image_column(data, spec, options), data.features.arrow_schema
    store = MemoryImages(
        data, partial(cell_of, _undecoded(data, image, spec), image), is_quick=True
    )
    return table_source(spec, store, image, partial(_read, data), schema, options)


def _image_column(data: Any, where: str, options: ReadOptions) -> str:
    """The column of the images, by its name or as the only one of that type."""
    names, asked = data.column_names, options.image_column
    typed = [name for name in names if isinstance(data.features[name], _library().Image)]
    if asked is None and len(typed) == 1:
        asked = typed[0]
    return find_column(names, IMAGE_COLUMNS, where, asked)


def _reaching(name: str) -> AbstractContextManager[None]:
    """A block that may ask the hub; a folder, whose path is absolute, needs none."""
    return nullcontext() if os.path.isabs(name) else one_try()


@lru_cache(maxsize=4)
def hub_images(name: str, split: str, column: str | None = None) -> MemoryImages:
    """One split of a data set on a hub; its rows are named ``hub:NAME#SPLIT#ROW``."""
    data, table = _load(name, split), f"hub:{name}#{split}"
    image = _image_column(data, table, ReadOptions(image_column=column))
    held = _undecoded(data, image, table)
    return MemoryImages(held, partial(cell_of, held, image), table=table)


@lru_cache(maxsize=4)
def _load(name: str, split: str) -> Any:
    datasets = _library()
    try:
        with _reaching(name):
            return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, missing names, damaged files: each has its own kind
        raise _not_loaded(f"{name}#{split}", error) from error


def _undecoded(data: Any, column: str, where: str) -> Any:
    """The same data set, giving encoded images."""
    datasets = _library()
    if not isinstance(data.features[column], datasets.Image):
        raise SourceError(
            f"{where}: column '{column}' must be of the type datasets.Image, got "
            f"{data.features[column]}"
        )
    return data.with_format(None).cast_column(column, datasets.Image(decode=False))


def _read(data: Any, columns: Sequence[str]) -> Columns:
    if not columns:
        return {}
    table = data.select_columns(list(columns)).with_format("arrow")[:]
    return {name: table.column(name).to_pylist() for name in columns}


def _library() -> Any:
    with needs_extra("hub data sets", "hub"):
        import datasets
    return datasets


def _not_loaded(asked: str, error: Exception) -> SourceError:
    return SourceError(
        f"hub:{asked}: could not be loaded ({first_line(error)}); check the name, the split and "
        "the network"
    )
