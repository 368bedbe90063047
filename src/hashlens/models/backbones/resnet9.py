"""ResNet-9 for small colour images, trained from scratch in minutes."""

from __future__ import annotations

from torch import Tensor, nn

from hashlens.errors import ModelError
from hashlens.models.backbones import Backbone, register_backbone, squashed

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
MIN_SIZE = 16


@register_backbone
def resnet9(*, channels: int, size: int | None, width: int = 64) -> Backbone:
    """ResNet-9: four convolutions, two residual blocks, global max pooling.

    After the network of the DAWNBench CIFAR-10 entries (D. Page, 2018), with pooling before
    the normalisation.
    """
    size = size or 32
    if size < MIN_SIZE:
        raise ModelError(
            f"resnet9 takes images of at least {MIN_SIZE} px, got {size}; use smallcnn for "
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
