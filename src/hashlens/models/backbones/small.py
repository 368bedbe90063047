"""Networks for small images, trained from scratch in minutes: of convolutions, and ResNet-9."""

from __future__ import annotations

from torch import Tensor, nn

from hashlens.errors import ModelError
from hashlens.models.backbones import Backbone, register_backbone, squashed

_SIZES = (8, 64)
_FEATURE_DIM, _DROPOUT = 256, 0.3


@register_backbone
def smallcnn(*, channels: int, size: int | None) -> Backbone:
    """Two pairs of convolutions, each pair pooled to half the side, and a layer of 256 features.

    For grey images of 8 to 32 pixels: digits, characters, icons.
    """
    size = size or 28
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ModelError(
            f"smallcnn takes images of {_SIZES[0]} to {_SIZES[1]} px, got {size}; "
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
        nn.Dropout(_DROPOUT),
        nn.Linear(64 * side * side, _FEATURE_DIM, bias=False),
        nn.BatchNorm1d(_FEATURE_DIM),
        nn.ReLU(inplace=True),
    )
    preprocessing = squashed(size, channels, (0.5,) * channels, (0.5,) * channels)
    return Backbone("smallcnn", module, _FEATURE_DIM, preprocessing)


_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
_LEAST = 16


@register_backbone
def resnet9(*, channels: int, size: int | None, width: int = 64) -> Backbone:
    """ResNet-9: four convolutions, two residual blocks, global max pooling.

    After the network of the DAWNBench CIFAR-10 entries (D. Page, 2018), with pooling before
    the normalisation.
    """
    size = size or 32
    if size < _LEAST:
        raise ModelError(
            f"resnet9 takes images of at least {_LEAST} px, got {size}; use smallcnn for "
            "smaller ones"
        )
    if type(width) is not int or width < 1:
        raise ModelError(f"resnet9's width is a whole number from 1, got {width!r}")
    module = nn.Sequential(
        _convolution(channels, width),
        _convolution(width, 2 * width, pool=True),
        _Residual(2 * width),
        _convolution(2 * width, 4 * width, pool=True),
        _convolution(4 * width, 8 * width, pool=True),
        _Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )
    name = "resnet9" if width == 64 else f"resnet9?width={width}"
    return Backbone(name, module, 8 * width, squashed(size, channels, _MEAN, _STD))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = images + self.layers(images)
        return out


def _convolution(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
