"""Parquet files of a few pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlens.data.opening import load_image
from hashlens.data.source import Source
from image_builders import CLASSES, encoded, picture

PICTURES = [picture(CLASSES[i % 3], i, 8) for i in range(9)]


def write_table(
    path: Path,
    labels: Any = None,
    names: Any = None,
    *,
    images: Sequence[bytes | None] | None = None,
    struct: bool = True,
    group: int = 4,
) -> Path:
    """A parquet file of ``PICTURES`` with a label column, class names in the schema."""
    data = [encoded(image) for image in PICTURES] if images is None else list(images)
    column = [{"bytes": value, "path": None} for value in data] if struct else data
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    columns = {"image": pa.array(column, kind)}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        if labels is not None and pa.types.is_list(columns["label"].type):
            feature = {"feature": feature, "_type": "List"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)
    return path


def assert_same_pictures(source: Source) -> None:
    for i, expected in enumerate(PICTURES):
        for image in (source.load(i), load_image(source.uris[i])):
            assert np.array_equal(np.asarray(image), np.asarray(expected))
