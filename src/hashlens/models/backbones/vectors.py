"""Ready vectors, as sources of vectors have them; chosen by itself."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hashlens.data.preprocessing import Metric, VectorInput
from hashlens.models.backbones import Backbone, StartWeights, register_backbone, vectors_name


class UnitLength(nn.Module):
    """Brings vectors to unit length, so that Euclidean distance orders as the cosine does."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (n, width) to vectors of unit length."""
        return functional.normalize(vectors, dim=1)


@register_backbone
def vectors(*, width: int = 0, metric: Metric = "cosine") -> Backbone:
    """No network at all: vectors of ``width`` values are the features, of unit length if cosine."""
    taken = VectorInput(width, metric)
    return Backbone(
        vectors_name(taken),
        UnitLength() if metric == "cosine" else nn.Identity(),
        width,
        taken,
        StartWeights("no backbone: ready vectors"),
    )
