"""CNNH: target codes from labels, and the network that learns them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hashlens.models.latent import LatentOutput
from hashlens.training.objectives import create_objective
from hashlens.training.objectives.cnnh import class_codes, decompose_similarity


def test_cnnh_decomposition_never_rises_and_is_that_of_all_pairs() -> None:
    labels = np.random.default_rng(0).integers(4, size=60)
    bits, losses = decompose_similarity(labels, 16)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(losses))
    assert bits.shape == (60, 16)
    start = np.random.default_rng(0).uniform(-1, 1, (60, 16))
    error = np.where(labels[:, None] == labels, 1, -1) - start @ start.T / 16
    np.fill_diagonal(error, 0)
    assert losses[0] == pytest.approx(np.square(error).sum() / (60 * 59))


@pytest.mark.parametrize("bits", [12, 48])
def test_cnnh_gives_one_code_a_class_and_other_classes_others(bits: int) -> None:
    labels = np.random.default_rng(0).integers(10, size=3000)
    found = decompose_similarity(labels, bits, sweeps=10).bits
    codes = class_codes(10, bits)
    assert len(np.unique(codes, axis=0)) == 10
    for number in range(10):
        own = found[labels == number]
        assert (own == own[0]).mean() > 0.99
    distances = (codes[:, None] != codes[None]).sum(axis=2)[~np.eye(10, dtype=bool)]
    assert distances.min() >= bits // 4


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
