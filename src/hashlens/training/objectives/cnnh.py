"""CNNH and CNNH+: codes of a decomposed similarity matrix as targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from hashlens.baselines.cnnh import class_codes
from hashlens.training.objectives.classification import Losses, classification_loss

if TYPE_CHECKING:
    from hashlens.models.latent import LatentOutput


class Cnnh(nn.Module):
    """The network learns the target codes that stage 1 made of the labels.

    R. Xia, Y. Pan, H. Lai, C. Liu, S. Yan, "Supervised Hashing for Image Retrieval via Image
    Representation Learning", AAAI 2014, stage 2: cross entropy between the activations and the
    target bits (mean over bits). Of one class all images share a target code; see
    ``baselines.cnnh``. With several labels an image, which the paper has not, the bits are those
    of most labels. CNNH+ has the class labels as further targets; in the paper they are
    outputs beside the bits, here F8 behind them. In CNNH the gradient of F8's loss is stopped
    before the bits, so that it predicts classes and leaves the codes alone.

    Parameters
    ----------
    bits : int
        Length of a code.
    classes : int
        Number of classes.
    seed : int
        Of the decomposition.
    with_labels : bool
        CNNH+.
    """

    codes: torch.Tensor

    def __init__(self, bits: int, classes: int, seed: int = 0, *, with_labels: bool) -> None:
        super().__init__()
        self.with_labels = with_labels
        codes = torch.from_numpy(class_codes(classes, bits, seed=seed)).float()
        self.register_buffer("codes", codes)

    def forward(self, output: LatentOutput, targets: torch.Tensor, classifier: nn.Module) -> Losses:
        """Return the losses of a batch."""
        latent = output.latent.float()
        rebuilt = functional.binary_cross_entropy_with_logits(latent, self._wanted(targets))
        activations = torch.sigmoid(latent)
        scores = classifier(activations if self.with_labels else activations.detach())
        loss = classification_loss(scores, targets)
        return Losses(rebuilt + loss, loss, scores)

    def _wanted(self, targets: torch.Tensor) -> torch.Tensor:
        if targets.ndim == 1:
            return self.codes[targets]
        votes = targets.float() @ (2 * self.codes - 1)
        return (votes >= 0).float()
