"""AlexNet as torchvision builds it, up to F7: the one-tower form with published weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

from torch import nn

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
