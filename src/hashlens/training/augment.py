"""Augmentation of a whole batch at once, on tensors, from numbers drawn beforehand."""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def shift_and_flip(
    pixels: torch.Tensor, draws: torch.Tensor, crop: float, flip: bool
) -> torch.Tensor:
    """Shift each image, its border mirrored, and mirror half of them: one gather.

    Parameters
    ----------
    pixels : tensor of shape (b, size, size, channels), any type
        Images.
    draws : tensor of shape (b, 3 or more), float32
        Uniform in [0, 1): mirrored from 0.5 on, horizontal shift, vertical shift.
    crop : float
        Largest shift as a share of the side.
    flip : bool
        Whether images are mirrored at all.

    Returns
    -------
    tensor like ``pixels``
    """
    size = pixels.shape[1]
    reach = round(crop * size)
    if reach == 0 and not flip:
        return pixels
    line = torch.arange(size, device=pixels.device)
    shifts = (draws[:, 1:3] * (2 * reach + 1)).long() - reach
    columns, rows = line + shifts[:, :1], line + shifts[:, 1:2]
    if flip:
        columns = torch.where(draws[:, :1] >= 0.5, size - 1 - columns, columns)
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels[images, _reflect(rows, size)[:, :, None], _reflect(columns, size)[:, None, :]]


def _reflect(places: torch.Tensor, size: int) -> torch.Tensor:
    last = size - 1
    return last - (last - places.abs()).abs()


def rotate_and_scale(images: torch.Tensor, draws: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn each image, and scale it by up to a tenth; what is missing is mirrored.

    Parameters
    ----------
    images : tensor of shape (b, channels, size, size), float
        Images.
    draws : tensor of shape (b, 5), float32
        The fourth number decides the angle, the fifth the scale.
    degrees : float
        Largest angle to either side; 0 leaves the images as they are.

    Returns
    -------
    tensor like ``images``
    """
    if degrees == 0:
        return images
    angle = (2 * draws[:, 3] - 1) * math.radians(degrees)
    scale = 0.9 + 0.2 * draws[:, 4]
    cosine, sine, zero = torch.cos(angle) * scale, torch.sin(angle) * scale, torch.zeros_like(angle)
    turns = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(turns.to(images.dtype), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
