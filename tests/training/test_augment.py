"""Augmentation on tensors against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashlens.training.module import change_light, cut_out, rotate_and_zoom, shift_and_flip


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
    assert rotate_and_zoom(images, torch.rand(2, 5), 0.0) is images


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(1, 1, 9, 9)
    draws = torch.full((1, 5), 0.5)
    draws[0, 3] = 1.0  # the whole angle, and no scaling
    turned = rotate_and_zoom(images, draws, 90.0)
    quarter = torch.rot90(images, 1, (2, 3))
    torch.testing.assert_close(turned, quarter, atol=1e-5, rtol=0)


def test_zoom_shows_a_part_at_the_drawn_place() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    draws = torch.full((1, 14), 0.5)
    draws[0, 5], draws[0, 7], draws[0, 8] = 1.0, 0.0, 1.0  # sides of 1/2, left, bottom
    zoomed = rotate_and_zoom(images, draws, 0.0, 0.5)
    corner = torch.nn.functional.interpolate(
        images[:, :, 4:, :4], size=(8, 8), mode="bilinear", align_corners=False
    )
    # Next to the corner's inner edges its neighbours are seen as well.
    torch.testing.assert_close(zoomed[:, :, 1:, :7], corner[:, :, 1:, :7])


def test_zoom_never_leaves_the_image() -> None:
    draws = torch.rand(200, 14, generator=torch.Generator().manual_seed(0))
    edge = torch.zeros(200, 1, 16, 16)
    edge[:, :, :, 8:] = 1.0
    wide = rotate_and_zoom(edge, draws, 0.0, 0.9)
    columns = wide.mean(dim=(1, 2))
    assert bool((columns.diff(dim=1) >= -1e-5).all())  # a mirrored border would fall again


def test_light_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 255 * torch.rand(5, 4, 4, 3, generator=generator)
    draws = torch.rand(5, 14, generator=generator)
    got = change_light(values, draws, 0.4).numpy()
    for image, draw, result in zip(values.numpy(), draws.numpy(), got, strict=True):
        bright, contrast, colour = 1 + 0.4 * (2 * draw[9:12] - 1)
        lit = image * bright
        mean = lit.mean()
        wanted = np.empty_like(lit)
        for row in range(4):
            for column in range(4):
                grey = lit[row, column].mean()
                coloured = grey + colour * (lit[row, column] - grey)
                wanted[row, column] = mean + contrast * (coloured - mean)
        np.testing.assert_allclose(result, wanted.clip(0, 255), rtol=1e-4, atol=1e-2)


def test_cutout_blanks_one_square_of_the_stated_size() -> None:
    images = torch.ones(50, 3, 10, 10)
    draws = torch.rand(50, 14, generator=torch.Generator().manual_seed(0))
    blank = cut_out(images, draws, 0.4) == 0
    assert blank.sum(dim=(1, 2, 3)).tolist() == [3 * 16] * 50
    assert blank.any(dim=1).any(dim=1).sum(dim=1).tolist() == [4] * 50  # columns
    assert len({tuple(image[0].nonzero()[0].tolist()) for image in blank}) > 10
    assert cut_out(images, draws, 0.0) is images
