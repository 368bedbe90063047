"""The second stage of CNNH: target codes from labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import create_objective
from hashlens.training.objectives.cnnh import class_codes


def _output(latent: torch.Tensor, classifier: nn.Module) -> LatentOutput:
    activations = torch.sigmoid(latent)
    return LatentOutput(latent, latent, activations, classifier(activations))


@pytest.mark.parametrize(("name", "reaches"), [("cnnh", False), ("cnnh+", True)])
def test_codes_of_the_class_cost_nothing_and_labels_count_in_cnnh_plus(
    name: str, reaches: bool
) -> None:
    torch.manual_seed(0)
    codes = torch.from_numpy(class_codes(5, 24, seed=1)).float()
    objective = create_objective(name, bits=24, classes=5, seed=1)
    classifier = nn.Linear(24, 5)
    targets = torch.arange(5)
    latent = (40 * (2 * codes - 1)).requires_grad_()
    losses = objective(_output(latent, classifier), targets, classifier)
    assert (losses.total - losses.classification).item() == pytest.approx(0, abs=1e-6)
    wrong = objective(_output(latent.roll(1, 0), classifier), targets, classifier)
    assert (wrong.total - wrong.classification).item() > 1
    small = torch.zeros(5, 24, requires_grad=True)
    loss = objective(_output(small, classifier), targets, classifier).classification
    (gradient,) = torch.autograd.grad(loss, small, allow_unused=True)
    assert (gradient is not None) == reaches
