"""GIST against a plain rewrite, and what its filters must answer to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hashlens import InvalidInputError
from hashlens.paper.gist import WIDTH, _even_contrast, _gabor_filters, gist


def stripes(angle: float, period: float, size: int = 32) -> NDArray[np.uint8]:
    """Grey stripes; ``angle`` is the direction across them."""
    down, across = np.mgrid[:size, :size]
    along = across * np.cos(angle) + down * np.sin(angle)
    return (127 + 100 * np.cos(2 * np.pi * along / period)).astype(np.uint8)


def test_descriptors_equal_a_plain_rewrite() -> None:
    """Filter by filter and cell by cell, with NumPy's transform and convolution sums."""
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16), np.uint8)
    contrast = _even_contrast(image.astype(np.float32))[0]
    padded = np.pad(contrast, 4, mode="symmetric")
    expected = []
    for transfer in _gabor_filters(24):
        kernel = np.fft.ifft2(transfer)
        response = np.zeros((24, 24), complex)
        for down in range(24):
            for across in range(24):
                response += kernel[down, across] * np.roll(padded, (down, across), (0, 1))
        inside = np.abs(response)[4:20, 4:20]
        expected += [
            inside[r : r + 4, c : c + 4].mean() for r in (0, 4, 8, 12) for c in (0, 4, 8, 12)
        ]
    np.testing.assert_allclose(gist(image)[0], expected, rtol=1e-3, atol=1e-5)


def test_each_orientation_answers_to_its_stripes() -> None:
    quarter = np.pi / 2
    found = gist(np.stack([stripes(0, 4), stripes(quarter, 4)])).reshape(2, 4, 8, 16).mean(axis=3)
    across, down = found[0, 0].argmax(), found[1, 0].argmax()
    assert across in (0, 4)  # a real filter's orientation and its opposite
    assert abs(int(across) - int(down)) in (2, 4, 6)
    assert across != down


def test_finer_stripes_answer_in_finer_scales() -> None:
    fine, coarse = (
        gist(np.stack([stripes(0.3, 3.3), stripes(0.3, 12)])).reshape(2, 4, -1).mean(axis=2)
    )
    assert fine.argmax() < coarse.argmax()


def test_colour_is_averaged_and_bad_shapes_are_refused() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=3)
    done: list[int] = []
    found = gist(colour, progress=done.append)
    assert found.shape == (3, WIDTH) == (3, 512)
    assert found.dtype == np.float32
    assert done == [3]
    np.testing.assert_allclose(found, gist(grey), atol=1e-5)
    assert np.isfinite(gist(np.zeros((1, 32, 32), np.uint8))).all()
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        gist(np.zeros((1, 30, 30), np.uint8))
