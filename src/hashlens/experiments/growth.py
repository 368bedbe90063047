"""Grows a collection to a size with changed copies of its images, so that time can be measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hashlens.data.images import decode
from hashlens.data.source import ImageStore, Source
from hashlens.data.uris import RawImage
from hashlens.errors import InvalidInputError


@dataclass(frozen=True)
class GrownImages:
    """A store's images, and after them changed copies of them, made when they are read.

    Parameters
    ----------
    base : ImageStore
        Where the images lie.
    size : int
        Images in all.
    seed : int
        Decides the changes; a row always reads the same.
    """

    base: ImageStore
    size: int
    seed: int

    def __len__(self) -> int:
        return self.size

    def uri(self, row: int) -> str:
        """As the base names it, with ``#copy=ROW`` after it for a copy."""
        name = self.base.uri(row % len(self.base))
        return name if row < len(self.base) else f"{name}#copy={row}"

    def read(self, row: int) -> RawImage:
        """As the base reads it, or the pixels of a copy."""
        origin = row % len(self.base)
        raw = self.base.read(origin)
        if row < len(self.base):
            return raw
        image = decode(raw, self.base.uri(origin))
        return np.asarray(changed(image, np.random.default_rng((self.seed, row))))


def grow(source: Source, size: int, seed: int) -> Source:
    """A source of ``size`` images: its own, then changed copies of them, in turn.

    Parameters
    ----------
    source : Source
        Where the images come from.
    size : int
        At least as many as there are.
    seed : int
        Decides the changes.

    Raises
    ------
    InvalidInputError
        If ``size`` is below the number of images.
    """
    if size < len(source):
        raise InvalidInputError(
            f"scale: expected at least the {len(source):,} images, got {size:,}"
        )
    chosen = np.arange(size)
    return replace(
        source,
        spec=f"{source.spec}, grown to {size:,} with seed {seed}",
        store=GrownImages(_Rows(source), size, seed),
        rows=chosen,
        labels=source.labels[chosen % len(source)],
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of a source as a store of their own."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def uri(self, row: int) -> str:
        return self.source.store.uri(int(self.source.rows[row]))

    def read(self, row: int) -> RawImage:
        return self.source.store.read(int(self.source.rows[row]))


def changed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy: a crop of 70 to 100 % of each side, mirrored or not, of other light and colour."""
    width, height = image.size
    inner = [max(1, round(side * rng.uniform(0.7, 1.0))) for side in (width, height)]
    left, top = int(rng.integers(width - inner[0] + 1)), int(rng.integers(height - inner[1] + 1))
    copy = image.crop((left, top, left + inner[0], top + inner[1]))
    copy = copy.resize((width, height), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        copy = ImageOps.mirror(copy)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        copy = change(copy).enhance(float(rng.uniform(0.7, 1.3)))
    return copy
