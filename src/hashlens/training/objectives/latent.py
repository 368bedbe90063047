"""The paper's objective: the classification loss alone."""

from __future__ import annotations

import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import Losses, classification_loss, objective


@objective("latent", "classification loss alone, as in the paper; F8 reads sigmoid(H)")
@objective("softmax", "classification loss of a network without H; the codes are LSH of its F7")
class Latent(nn.Module):
    """Softmax loss on F8's scores, which see the image through the latent layer alone.

    K. Lin, H.-F. Yang, J.-H. Hsiao, C.-S. Chen, "Deep Learning of Binary Hash Codes for Fast Image
    Retrieval", CVPR Workshops 2015, section 3.1: no term on the codes; the sigmoid and the
    classifier behind it make the activations gather near 0 and 1 by themselves. Under the name
    ``softmax`` F8 reads F7 instead, as in the network that the paper starts from.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        loss = classification_loss(output.scores, targets, self.label_smoothing)
        return Losses(loss, loss)
