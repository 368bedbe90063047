"""From a picture, or a vector, to what a network takes: one description, stored with each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.errors import InvalidInputError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIZE = 4096
MAX_WIDTH = 1 << 20
_RESIZES = ("squash", "crop")
# Pillow first shrinks large pictures by whole factors down to this many times the target.
_REDUCING_GAP = 3.0


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become arrays. NumPy and Pillow only, so that every encoder sees the same."""

    size: int  # side of the square input, in pixels
    channels: Literal[1, 3] = 3  # grey or colour; a picture of the other kind is converted
    # one per channel, in units of [0, 1]: value = (pixel / 255 - mean) / std
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    # ``squash`` changes the aspect ratio and keeps the whole picture; ``crop`` keeps the aspect
    # ratio and takes the centre
    resize: Literal["squash", "crop"] = "squash"
    # for ``crop``: side of the square that is kept, as a share of the shorter side. This is what
    # timm calls crop_pct: resize to size / crop_fraction, then crop
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"  # Pillow's filters, which smooth when they shrink

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if not (whole and 1 <= self.size <= MAX_SIZE):
            raise InvalidInputError(
                f"size: expected a whole number from 1 to {MAX_SIZE}, got {self.size!r:.40}"
            )
        if self.channels not in (1, 3):
            raise InvalidInputError(f"channels: expected 1 or 3, got {self.channels!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise InvalidInputError(
                    f"{name}: expected {self.channels} numbers, one per channel, got {values}"
                )
        if min(self.std) <= 0:
            raise InvalidInputError(f"std: expected numbers over 0, got {self.std}")
        if self.resize not in _RESIZES:
            raise InvalidInputError(f"resize: expected one of {_RESIZES}, got {self.resize!r}")
        if not 0 < self.crop_fraction <= 1:
            raise InvalidInputError(
                f"crop_fraction: expected over 0, up to 1, got {self.crop_fraction}"
            )
        if self.interpolation not in _FILTERS:
            raise InvalidInputError(
                f"interpolation: expected one of {tuple(_FILTERS)}, got {self.interpolation!r}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image as the network takes it."""
        return (self.channels, self.size, self.size)

    @property
    def size_hint(self) -> int:
        """Shorter side, in pixels, below which a picture should not be decoded."""
        if self.resize == "squash":
            return self.size
        return math.ceil(self.size / self.crop_fraction)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture (mode L or RGB) as (size, size, channels) uint8."""
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode and mode == "L":  # before resizing: one channel is less to resize
            image = image.convert(mode)
        target = (self.size, self.size)
        box = self._box(*image.size)
        if image.size != target or box != (0, 0, *target):
            image = image.resize(
                target, _FILTERS[self.interpolation], box=box, reducing_gap=_REDUCING_GAP
            )
        if image.mode != mode:
            image = image.convert(mode)
        return np.asarray(image, np.uint8).reshape(self.size, self.size, self.channels)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What is kept of a picture; resizing this box is resizing and cropping in one step."""
        if self.resize == "squash":
            return (0, 0, width, height)
        side = min(width, height) * self.crop_fraction
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (n, h, w, channels), uint8, to contiguous (n, channels, h, w), float32."""
        if pixels.ndim != 4 or pixels.shape[3] != self.channels or pixels.dtype != np.uint8:
            raise InvalidInputError(
                f"pixels: expected uint8 of shape (n, h, w, {self.channels}), got "
                f"{pixels.dtype} of {pixels.shape}"
            )
        n, height, width, channels = pixels.shape
        values = np.empty((n, channels, height, width), np.float32)
        for channel in range(channels):
            scale = np.float32(1 / (255 * self.std[channel]))
            shift = np.float32(-self.mean[channel] / self.std[channel])
            plane = values[:, channel]
            np.multiply(pixels[..., channel], scale, out=plane, casting="unsafe")
            plane += shift
        return values

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON takes them."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}


Metric: TypeAlias = Literal["cosine", "euclidean"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class VectorInput:
    """What a network over ready vectors takes, in the place of pictures."""

    width: int  # values of a vector
    # with ``cosine`` the network brings vectors to unit length first, so that only their direction
    # counts; a vector of zeros then has none, and is refused
    metric: Metric = "cosine"

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= MAX_WIDTH:
            raise InvalidInputError(
                f"width of a vector: expected 1 to {MAX_WIDTH}, got {self.width!r:.40}"
            )
        if self.metric not in METRICS:
            raise InvalidInputError(
                f"metric: expected one of {', '.join(METRICS)}, got {self.metric!r:.40}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one vector as the network takes it."""
        return (self.width,)

    def stack(self, vectors: Sequence[Any], first: int = 0) -> NDArray[np.float32]:
        """Vectors as one array; the first of them is named by ``first`` in messages."""
        for row, vector in enumerate(vectors, first):
            dtype, shape = getattr(vector, "dtype", None), getattr(vector, "shape", None)
            if shape != (self.width,) or getattr(dtype, "kind", "") != "f":
                what = f"{type(vector).__name__} {vector!r:.60}"
                got = what if dtype is None or shape is None else f"{dtype} of shape {shape}"
                raise InvalidInputError(
                    f"row {row}: this model takes vectors of {self.width} floating numbers "
                    f"(a one-dimensional array), got {got}"
                )
        return self.normalise(np.stack(vectors))

    def normalise(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """Vectors (n, width) as contiguous float32."""
        with np.errstate(over="ignore"):  # becomes infinity, which `faults` finds
            return np.ascontiguousarray(vectors, np.float32)

    def faults(self, vectors: NDArray[np.float32]) -> dict[int, str]:
        """Rows of vectors (n, width) that cannot be encoded, and why."""
        # A sum is finite where all its terms are, and far quicker to test.
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        found = dict.fromkeys(np.flatnonzero(~np.isfinite(squares)).tolist(), "NaN or infinity")
        if self.metric == "cosine":
            zero = np.flatnonzero(squares == 0).tolist()
            found |= dict.fromkeys(zero, "a vector of zeros, which has no direction")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON takes them."""
        return asdict(self)


def input_from_dict(values: Mapping[str, Any]) -> Preprocessing | VectorInput:
    """Inverse of ``to_dict``, of pictures or vectors."""
    kind = VectorInput if "metric" in values else Preprocessing
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        odd = sorted(names ^ set(values))
        raise InvalidInputError(
            f"preprocessing: expected the fields {sorted(names)}, differing in {odd}; "
            "was the model written by another version?"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInputError(f"preprocessing: {error}") from error
