"""Augmentation on tensors against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashlens.training.module import rotate_and_scale, shift_and_flip


@pytest.mark.parametrize("flip", [False, True])
def test_shift_and_flip_against_padding_and_slicing(flip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8)
    draws = torch.rand(20, 5, generator=generator)
    got = shift_and_flip(pixels, draws, 0.25, flip).numpy()
    for image, draw, result in zip(pixels.numpy(), draws.numpy(), got, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        left, top = int(draw[1] * 5), int(draw[2] * 5)
        if flip and draw[0] >= 0.5:
            # mirrored first: the shift then goes the other way
            left = 4 - left
        wanted = padded[top : top + 8, left : left + 8]
        if flip and draw[0] >= 0.5:
            wanted = wanted[:, ::-1]
        np.testing.assert_array_equal(result, wanted)


def test_nothing_to_do_returns_the_pixels() -> None:
    pixels = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    assert shift_and_flip(pixels, torch.rand(2, 5), 0.0, False) is pixels
    images = torch.rand(2, 1, 8, 8)
    assert rotate_and_scale(images, torch.rand(2, 5), 0.0) is images


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(1, 1, 9, 9)
    draws = torch.full((1, 5), 0.5)
    draws[0, 3] = 1.0  # the whole angle, and no scaling
    turned = rotate_and_scale(images, draws, 90.0)
    quarter = torch.rot90(images, 1, (2, 3))
    torch.testing.assert_close(turned, quarter, atol=1e-5, rtol=0)
