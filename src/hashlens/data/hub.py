"""Data sets of the ``datasets`` library: by their name on a hub, or as they are in memory."""

from __future__ import annotations

import json
import os
from functools import lru_cache, partial
from typing import Any

from hashlens.data.image import RawImage
from hashlens.data.labels import Labels, labels_from_arrow
from hashlens.data.source import Source
from hashlens.data.tables import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    MemoryImages,
    find_column,
    labelled_source,
    raw_image,
)
from hashlens.errors import MissingExtraError, SourceError
from hashlens.files import Uri, row_uri


def open_hub(spec: str, name: str, split: str | None) -> Source:
    """A split of a data set as a source."""
    if os.path.isdir(os.path.expanduser(name)):
        name = os.path.abspath(os.path.expanduser(name))
    if split is None:
        try:
            splits = _library().get_dataset_split_names(name)
        except MissingExtraError:
            raise
        except Exception as error:
            raise _not_loaded(name, error) from error
        if len(splits) != 1:
            choices = " or ".join(f"hub:{name}#{choice}" for choice in splits)
            raise SourceError(f"{spec}: several splits; name one: {choices}")
        split = str(splits[0])
    store = HubImages(name, split)
    return labelled_source(spec, store, _labels(_load(name, split), f"hub:{name}#{split}"))


def open_dataset(data: Any) -> Source:
    """A ``datasets.Dataset`` as a source."""
    spec = f"datasets.Dataset of {len(data):,} rows"
    store = MemoryImages(data, partial(_value, _undecoded(data, spec)), is_quick=True)
    return labelled_source(spec, store, _labels(data, spec))


class HubImages:
    """One split of a data set on a hub. Pickles as its name."""

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split

    def __len__(self) -> int:
        return len(_load(self.name, self.split))

    def uri(self, row: int) -> Uri:
        """``hub:NAME#SPLIT#ROW``."""
        return row_uri(f"hub:{self.name}#{self.split}", row)

    def read(self, row: int) -> RawImage:
        """Encoded bytes of one row, or its file."""
        data = _load(self.name, self.split)
        if not 0 <= row < len(data):
            raise SourceError(f"expected a row from 0 to {len(data) - 1}, got {row}")
        return raw_image(_value(data, row))


@lru_cache(maxsize=4)
def _load(name: str, split: str) -> Any:
    datasets = _library()
    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, missing names, damaged files: each has its own kind
        raise _not_loaded(f"{name}#{split}", error) from error
    return _undecoded(data, f"hub:{name}#{split}")


def _undecoded(data: Any, where: str) -> Any:
    """The same data set, giving encoded images."""
    datasets = _library()
    column = find_column(data.column_names, IMAGE_COLUMNS, where)
    if not isinstance(data.features[column], datasets.Image):
        raise SourceError(
            f"{where}: column '{column}' must be of the type datasets.Image, got "
            f"{data.features[column]}"
        )
    return data.with_format(None).cast_column(column, datasets.Image(decode=False))


def _value(data: Any, row: int) -> Any:
    return data[row][find_column(data.column_names, IMAGE_COLUMNS, "")]


def _labels(data: Any, where: str) -> Labels:
    column = next((name for name in LABEL_COLUMNS if name in data.column_names), None)
    if column is None:
        columns = ", ".join(data.column_names)
        return Labels.none(len(data), f"{where} has no column 'label' (columns: {columns})")
    values = data.select_columns([column]).with_format("arrow")[:].column(column)
    features = {"info": {"features": {"label": data.features.to_dict()[column]}}}
    return labels_from_arrow(values, json.dumps(features).encode(), f"{where}, column '{column}'")


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("hub data sets", "train") from error
    return datasets


def _not_loaded(asked: str, error: Exception) -> SourceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SourceError(
        f"hub:{asked}: could not be loaded ({reason}); check the name, the split and the network"
    )
