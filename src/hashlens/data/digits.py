"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, without a download."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hashlens.data.image import RawImage
from hashlens.data.labels import split_validation
from hashlens.data.source import Source
from hashlens.errors import MissingExtraError, SourceError
from hashlens.files import Uri, row_uri

TEST_FRACTION = 0.2
_SPLIT_SEED = 2015
_LEVELS = 16


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the digits data set", "train") from error
    data = load_digits()
    pixels = np.rint(data.images * (255 / _LEVELS)).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels, data.target.astype(np.int64)


class DigitImages:
    """The digits as a store; rows are those of scikit-learn."""

    def __len__(self) -> int:
        return len(_digits()[0])

    def uri(self, row: int) -> Uri:
        """``digits#ROW``."""
        return row_uri("digits", row)

    def read(self, row: int) -> RawImage:
        """Pixels of one digit, (8, 8) uint8."""
        pixels = _digits()[0]
        if not 0 <= row < len(pixels):
            raise SourceError(f"digits: expected a row from 0 to {len(pixels) - 1}, got {row}")
        image: NDArray[np.uint8] = pixels[row]
        return image


def open_digits(spec: str) -> Source:
    """All digits, or a fixed stratified split of them."""
    pixels, labels = _digits()
    rows = np.arange(len(pixels))
    source = Source(spec, tuple(str(digit) for digit in range(10)), labels, DigitImages(), rows)
    _, _, split = spec.partition("#")
    if split == "":
        return source
    train, test = split_validation(labels, TEST_FRACTION, _SPLIT_SEED)
    if split not in ("train", "test"):
        raise SourceError(f"{spec}: expected digits, digits#train or digits#test")
    return source.subset(train if split == "train" else test)
