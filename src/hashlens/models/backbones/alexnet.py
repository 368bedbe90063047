"""AlexNet, up to F7: as torchvision builds it, and CaffeNet, which the authors fine-tuned.

CaffeNet is AlexNet with groups, with pooling before normalisation (BVLC reference CaffeNet).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from hashlens.errors import ModelError, needs_extra
from hashlens.models.backbones import (
    Backbone,
    StartWeights,
    load_weights,
    register_backbone,
    squashed,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURE_DIM = 4096
MIN_SIZE = 63  # below it nothing is left to pool
_LICENCE = "BSD-3-Clause (torchvision); ImageNet's own terms may apply"


@register_backbone
def alexnet(*, size: int | None, weights: Path | None, pretrained: bool) -> Backbone:
    """AlexNet (Krizhevsky et al., 2012; torchvision's layers); features are F7 after its ReLU."""
    if size is not None and size < MIN_SIZE:
        raise ModelError(f"alexnet takes images of at least {MIN_SIZE} px, got {size}")
    with needs_extra("alexnet", "train"):
        from torchvision import models
    try:
        published = models.AlexNet_Weights.IMAGENET1K_V1 if pretrained and weights is None else None
        network = models.alexnet(weights=published)
    except (URLError, OSError) as error:
        raise ModelError(
            f"could not download torchvision's AlexNet weights ({error}); give them with "
            "--weights FILE"
        ) from error
    start = StartWeights()
    if published is not None:
        start = StartWeights("torchvision AlexNet_Weights.IMAGENET1K_V1", _LICENCE)
    # F8 is dropped; dropout, F6, ReLU, dropout, F7, ReLU stay.
    module = nn.Sequential()
    module.add_module("features", network.features)
    module.add_module("avgpool", network.avgpool)
    module.add_module("flatten", nn.Flatten())
    module.add_module("classifier", network.classifier[:6])
    if weights is not None:
        start = load_weights(module, weights, head=("classifier.6.",))
    preprocessing = squashed(size or 224, 3, IMAGENET_MEAN, IMAGENET_STD)
    return Backbone("alexnet", module, FEATURE_DIM, preprocessing, start)


# Means of ImageNet's pixels, red green blue, on 0 to 255; Caffe does not scale the pixels.
_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
_STD = (1 / 255, 1 / 255, 1 / 255)


@register_backbone
def caffenet(*, size: int | None, weights: Path | None) -> Backbone:
    """CaffeNet; features are F7 after its ReLU, before the dropout (latent_dropout of training)."""
    if size not in (None, 227):
        raise ModelError(f"caffenet takes images of 227 px, got {size}; use alexnet for others")
    module = _caffenet()
    start = StartWeights()
    if weights is not None:
        start = load_weights(module, weights, head=("fc8", "fc8_"))
        with torch.no_grad():
            first: Tensor = module.get_submodule("conv1").get_parameter("weight")
            first.copy_(first.flip(1))
    return Backbone("caffenet", module, FEATURE_DIM, squashed(227, 3, _MEAN, _STD), start)


# Of each convolution: channels in and out, side, and what else it has.
_CONVOLUTIONS: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (3, 96, 11, {"stride": 4}),
    (96, 256, 5, {"padding": 2, "groups": 2}),
    (256, 384, 3, {"padding": 1}),
    (384, 384, 3, {"padding": 1, "groups": 2}),
    (384, 256, 3, {"padding": 1, "groups": 2}),
)


def _caffenet() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs, side, options) in enumerate(_CONVOLUTIONS, 1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, side, **options)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        if i in (1, 2, 5):
            layers[f"pool{i}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if i in (1, 2):
            layers[f"norm{i}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    layers |= {"flatten": nn.Flatten(), "fc6": nn.Linear(256 * 6 * 6, FEATURE_DIM)}
    layers |= {"relu6": nn.ReLU(inplace=True), "drop6": nn.Dropout(0.5)}
    layers |= {"fc7": nn.Linear(FEATURE_DIM, FEATURE_DIM), "relu7": nn.ReLU(inplace=True)}
    # Caffe's own start: narrow Gaussians, ones as bias where a ReLU would otherwise stay shut.
    with torch.no_grad():
        for name, layer in layers.items():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.005 if name.startswith("fc") else 0.01)
                ones = name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
                nn.init.constant_(layer.bias, 1.0 if ones else 0.0)  # type: ignore[arg-type]
    return nn.Sequential(layers)
