"""Pictures of any mode as grey or colour of 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WHITE = 255
_SIXTEEN_BIT = 65535


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """A picture in mode ``L`` or ``RGB``; grey stays grey.

    16-bit values are scaled to 8 bits, floats from 0 to 1 (else from 0 to 255) likewise;
    transparency is laid over white; CMYK and palettes become RGB.
    """
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode.startswith("I;16"):
        return _scaled(np.asarray(image).astype(np.float32), _SIXTEEN_BIT)
    if mode == "I":
        return _scaled(np.asarray(image).astype(np.float32), _SIXTEEN_BIT)
    if mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float32))
        return _scaled(values, 1 if values.max() <= 1 else 255)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = mode in ("1", "L", "LA", "La")
        return _over_white(image, grey)
    return image.convert("L" if mode == "1" else "RGB")


def _scaled(values: NDArray[np.float32], top: int) -> Image.Image:
    eight = np.rint(np.clip(values, 0, top) * (255 / top)).astype(np.uint8)
    return Image.fromarray(eight)


def _over_white(image: Image.Image, grey: bool) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # alpha already multiplied in
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    picture = image.convert("RGBA")
    paper = Image.new("RGBA", picture.size, (_WHITE,) * 4)
    flat = Image.alpha_composite(paper, picture)
    return flat.convert("L" if grey else "RGB")
