"""A hundred classes made of ten: two digits side by side, to train with many classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hashlens import SourceError
from hashlens.data.source import Source


def write_pairs(digits: Source, path: Path, per_class: int, seed: int = 0) -> None:
    """Write a parquet source of digit pairs, "00" to "99".

    Parameters
    ----------
    digits : Source
        Images of ten classes, all of the same size, such as ``mnist#train``.
    path : Path
        The parquet file.
    per_class : int
        Pairs of each class; both images are drawn with repetition.
    seed : int
        Decides which images are drawn.

    Raises
    ------
    SourceError
        If the source does not have ten classes.
    """
    if len(digits.classes) != 10:
        raise SourceError(f"{digits.spec}: expected ten classes, got {len(digits.classes)}")
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(digits.labels == label) for label in range(10)]
    images, labels = [], []
    for left in range(10):
        for right in range(10):
            for a, b in zip(
                rng.choice(rows[left], per_class), rng.choice(rows[right], per_class), strict=True
            ):
                images.append(_side_by_side(digits.load(int(a)), digits.load(int(b))))
                labels.append(f"{digits.classes[left]}{digits.classes[right]}")
    column = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({"image": column, "label": pa.array(labels)}), path)


def _side_by_side(left: Image.Image, right: Image.Image) -> bytes:
    both = Image.new("L", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    buffer = io.BytesIO()
    both.save(buffer, "PNG")
    return buffer.getvalue()
