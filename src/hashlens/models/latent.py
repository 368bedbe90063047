"""The network of the method: backbone, latent layer H, classifier F8 that sees H alone."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_linear_bn_eval

from hashlens.codes.packing import check_bits
from hashlens.errors import InvalidInputError

DROPOUT = 0.3
"""Share of a frozen backbone's features that training leaves out before F7."""


class LatentOutput(NamedTuple):
    """What the network makes of n images."""

    # (n, d): what fine search compares: F7, scaled and of unit length where the network has a
    # scaling. F7 is the backbone's output, or that of the trained layer over it
    features: Tensor
    # (n, h): layer H before the sigmoid. Bit j of a code is 1 where ``latent[:, j] >= 0``
    latent: Tensor
    activations: Tensor  # (n, h): layer H, ``sigmoid(latent)``. Bit j is 1 where it is at least 0.5
    # (n, classes): F8 before the softmax; no columns where the network has no classifier
    scores: Tensor


class Anchors(nn.Module):
    """Centred kernel values of features, which ``baselines.base.AnchorKernel`` defines."""

    anchors: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.zeros(count, width))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("mean", torch.zeros(count))

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, width) to values (n, count)."""
        squared = features.square().sum(dim=1, keepdim=True) - 2 * features @ self.anchors.T
        squared = (squared + self.anchors.square().sum(dim=1)).clamp(min=0)
        return torch.exp(-squared / self.scale) - self.mean


class LatentHashNet(nn.Module):
    """Backbone -> F7 features -> latent layer H (sigmoid) -> classifier F8.

    F8 depends on the image through H alone, so that the class labels shape the codes. H and F8
    start random. Lin et al., CVPRW 2015, section 3.2.

    ``latent_normalisation`` normalises each unit of H over the batch before the sigmoid (with a
    learned scale and no shift): it keeps the sigmoid away from its flat ends, where many classes or
    a deep backbone otherwise leave it without gradient, and centres each bit on its own threshold.
    A saved or exported network has it folded into the linear layer. ``latent_dropout`` is the share
    of F7 that training leaves out before H. ``feature_layer`` units make an F7 of its own between
    backbone and H: a frozen backbone's features know nothing of the classes, those of a trained F7
    do. ``plain`` is the paper's network without H: the classifier reads F7, and H stays as it was
    drawn, so that the codes are signs of random projections of F7 (LSH). Methods of
    ``hashlens.baselines`` are held as well: H reads kernel values of F7 at ``anchors`` images (KSH,
    BRE), or its values are cosines (``waves``: SH).
    """

    phase: Tensor | None
    feature_mean: Tensor | None
    feature_scale: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_dim: int,
        bits: int,
        classes: int,
        latent_normalisation: bool = False,
        latent_dropout: float = 0.0,
        feature_layer: int = 0,
        plain: bool = False,
        anchors: int = 0,
        waves: bool = False,
    ) -> None:
        super().__init__()
        if feature_dim < 1 or classes < 0 or feature_layer < 0:
            raise InvalidInputError(
                "expected feature_dim >= 1, classes >= 0 and feature_layer >= 0, "
                f"got {feature_dim}, {classes} and {feature_layer}"
            )
        self.backbone, self.latent_dropout = backbone, latent_dropout
        self.feature_layer: nn.Linear | None = None
        if feature_layer:
            self.feature_layer = nn.Linear(feature_dim, feature_layer)
        self.feature_dim = feature_layer or feature_dim  # width d of F7
        self.bits = check_bits(bits)  # length h of a code
        self.kernel = Anchors(anchors, self.feature_dim) if anchors else None
        self.latent = nn.Linear(anchors or self.feature_dim, bits)
        self.register_buffer("phase", torch.zeros(bits) if waves else None)
        self.normalise: nn.BatchNorm1d | None = None
        if latent_normalisation:
            self.normalise = nn.BatchNorm1d(bits)
            self.normalise.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        self.feature_classifier: nn.Linear | None = None
        if plain and classes:
            self.feature_classifier = nn.Linear(self.feature_dim, classes)
            for layer in filter(None, (self.latent, self.normalise)):
                layer.requires_grad_(False)
        elif classes:
            self.classifier = nn.Linear(bits, classes)
        # Not in the state until they are set, so that models without them stay as they were.
        self.register_buffer("feature_mean", None)
        self.register_buffer("feature_scale", None)

    def set_feature_scaling(self, mean: Tensor, scale: Tensor) -> None:
        """Give out F7 as :func:`scaled_features`; latent values and scores still read F7 itself."""
        self.feature_mean, self.feature_scale = mean, scale

    def forward(self, images: Tensor) -> LatentOutput:
        """Normalised images (n, channels, size, size) to :class:`LatentOutput`."""
        return self.from_features(self.backbone(images))

    def from_features(self, features: Tensor) -> LatentOutput:
        """The backbone's features (n, width), computed before, to :class:`LatentOutput`."""
        if self.feature_layer is not None:
            kept = functional.dropout(features, DROPOUT, self.training)
            features = torch.relu(self.feature_layer(kept))
        seen = functional.dropout(features, self.latent_dropout, self.training)
        latent = self.latent(seen if self.kernel is None else self.kernel(seen))
        if self.normalise is not None:
            latent = self.normalise(latent)
        if self.phase is not None:
            latent = torch.cos(latent + self.phase)
        activations = torch.sigmoid(latent)
        if self.feature_classifier is not None:
            scores = self.feature_classifier(seen)
        elif self.classifier is not None:
            scores = self.classifier(activations)
        else:
            scores = activations[:, :0]
        if self.feature_mean is not None and self.feature_scale is not None:
            features = scaled_features(features, self.feature_mean, self.feature_scale)
        return LatentOutput(features, latent, activations, scores)

    def plain_state(self) -> dict[str, Tensor]:
        """State dict on the CPU, the latent normalisation folded into the latent layer.

        With running mean m, variance v and scale g, H becomes the linear layer of weights
        ``W g / sqrt(v + eps)`` and bias ``(b - m) g / sqrt(v + eps)``: in evaluation mode the
        same function, up to rounding.
        """
        held = self.state_dict()
        if self.normalise is not None:
            latent = deepcopy(self.latent).cpu().double().eval()
            folded = fuse_linear_bn_eval(latent, deepcopy(self.normalise).cpu().double().eval())
            held = {name: held[name] for name in held if not name.startswith("normalise.")}
            held |= {f"latent.{name}": value.float() for name, value in folded.state_dict().items()}
        return {name: value.detach().cpu().clone() for name, value in held.items()}


def scaled_features(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """F7 (n, d) made for comparing: ``(F7 - mean) * scale``, of unit length; zero stays zero."""
    return functional.normalize((features - mean) * scale, dim=1)
