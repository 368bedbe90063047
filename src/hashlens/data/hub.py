"""Data sets of a hub, through the ``datasets`` library."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hashlens.data.labels import Labels, labels_from_arrow
from hashlens.data.source import Source
from hashlens.data.uris import RawImage
from hashlens.errors import MissingExtraError, SourceError
from hashlens.files import row_uri

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


class HubImages:
    """One split of a data set. Pickles as its name."""

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split

    def __len__(self) -> int:
        return len(_load(self.name, self.split))

    def uri(self, row: int) -> str:
        """``hub:NAME#SPLIT#ROW``."""
        return row_uri(f"hub:{self.name}#{self.split}", row)

    def read(self, row: int) -> RawImage:
        """Encoded bytes of one row, or its file."""
        data = _load(self.name, self.split)
        if not 0 <= row < len(data):
            raise SourceError(f"expected a row from 0 to {len(data) - 1}, got {row}")
        value = data[row][_column(data, IMAGE_COLUMNS)]
        if value is not None and value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value is not None and value.get("path"):
            return Path(value["path"])
        raise SourceError("no image in this row")

    def labels(self) -> Labels:
        """The label column, in words of classes."""
        data = _load(self.name, self.split)
        column = _column(data, LABEL_COLUMNS)
        where = f"hub:{self.name}#{self.split}"
        if column is None:
            columns = ", ".join(data.column_names)
            return Labels.none(len(data), f"{where} has no column 'label' (columns: {columns})")
        plain = data.select_columns([column]).with_format("arrow")[:]
        features = {"info": {"features": {"label": data.features.to_dict()[column]}}}
        metadata = json.dumps(features).encode()
        return labels_from_arrow(plain.column(column), metadata, f"{where}, column '{column}'")


@lru_cache(maxsize=4)
def _load(name: str, split: str) -> Any:
    datasets = _library()
    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, missing names, damaged files: each has its own kind
        raise _not_loaded(name, split, error) from error
    column = _column(data, IMAGE_COLUMNS)
    if column is None or not isinstance(data.features[column], datasets.Image):
        raise SourceError(
            f"hub:{name}#{split}: expected a column 'image' of images, got "
            f"{', '.join(data.column_names)}"
        )
    return data.cast_column(column, datasets.Image(decode=False))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("hub data sets", "train") from error
    return datasets


def _column(data: Any, names: tuple[str, ...]) -> Any:
    return next((name for name in names if name in data.column_names), None)


def _not_loaded(name: str, split: str | None, error: Exception) -> SourceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    asked = name if split is None else f"{name}#{split}"
    return SourceError(
        f"hub:{asked}: could not be loaded ({reason}); check the name, the split and the network"
    )


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
            raise _not_loaded(name, None, error) from error
        if len(splits) != 1:
            choices = " or ".join(f"hub:{name}#{choice}" for choice in splits)
            raise SourceError(f"{spec}: several splits; name one: {choices}")
        split = str(splits[0])
    store = HubImages(name, split)
    labels = store.labels()
    return Source(
        spec, labels.classes, labels.labels, store, np.arange(len(store)), labels.matrix,
        labels.notes,
    )  # fmt: skip
