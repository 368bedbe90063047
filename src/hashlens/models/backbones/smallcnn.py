"""A small convolutional network for grey images of 8 to 32 pixels: digits, characters, icons."""

from __future__ import annotations

from torch import nn

from hashlens.errors import ModelError
from hashlens.models.backbones import Backbone, register_backbone, squashed

MIN_SIZE, MAX_SIZE = 8, 64
FEATURE_DIM = 256
DROPOUT = 0.3


@register_backbone
def smallcnn(*, channels: int, size: int | None) -> Backbone:
    """Two pairs of convolutions, each pair pooled to half the side, and a layer of 256 features."""
    size = size or 28
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ModelError(
            f"smallcnn takes images of {MIN_SIZE} to {MAX_SIZE} px, got {size}; "
            "use resnet9 or a timm: backbone for larger ones"
        )
    side = size // 2 // 2
    module = nn.Sequential(
        *_convolution(channels, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(DROPOUT),
        nn.Linear(64 * side * side, FEATURE_DIM, bias=False),
        nn.BatchNorm1d(FEATURE_DIM),
        nn.ReLU(inplace=True),
    )
    preprocessing = squashed(size, channels, (0.5,) * channels, (0.5,) * channels)
    return Backbone("smallcnn", module, FEATURE_DIM, preprocessing)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
