"""Objectives: each against its paper's formula, written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hashlens import InvalidInputError
from hashlens.models.latent import LatentHashNet, LatentOutput
from hashlens.training.objectives import create_objective, objectives
from hashlens.training.objectives.csq import hash_centres

N, H, C = 12, 16, 5


@pytest.fixture
def net() -> LatentHashNet:
    torch.manual_seed(3)
    return LatentHashNet(nn.Identity(), feature_dim=7, bits=H, classes=C)


@pytest.fixture
def output(net: LatentHashNet) -> LatentOutput:
    result: LatentOutput = net.from_features(3 * torch.randn(N, 7))
    return result


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(N) % C


def _cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    values = scores.detach().numpy()
    picked = [values[i, k] - math.log(np.exp(values[i]).sum()) for i, k in enumerate(labels)]
    return -float(np.mean(picked))


def test_latent_is_the_softmax_loss(
    net: LatentHashNet, output: LatentOutput, labels: torch.Tensor
) -> None:
    losses = create_objective("latent", bits=H, classes=C)(output, labels, net.classifier)
    assert losses.total.item() == pytest.approx(_cross_entropy(output.scores, labels), rel=1e-5)


def test_ssdh_adds_push_and_balance(
    net: LatentHashNet, output: LatentOutput, labels: torch.Tensor
) -> None:
    losses = create_objective("ssdh", bits=H, classes=C)(output, labels, net.classifier)
    a = output.activations.detach().numpy()
    away = np.mean([np.sum((row - 0.5) ** 2) / H for row in a])
    uneven = np.mean([(np.mean(row) - 0.5) ** 2 for row in a])
    expected = _cross_entropy(output.scores, labels) - away + uneven
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)


def test_greedyhash_classifies_signs_and_passes_the_gradient_through(
    net: LatentHashNet, labels: torch.Tensor
) -> None:
    latent = torch.randn(N, H, requires_grad=True)
    output = LatentOutput(latent, latent, torch.sigmoid(latent), torch.zeros(N, C))
    assert net.classifier is not None
    losses = create_objective("greedyhash", bits=H, classes=C)(output, labels, net.classifier)
    signs = torch.where(latent.detach() >= 0, 1.0, -1.0)
    scores = net.classifier(torch.sigmoid(signs))
    penalty = 0.1 * float(((latent.detach().abs() - 1).abs() ** 3).mean())
    assert losses.total.item() == pytest.approx(_cross_entropy(scores, labels) + penalty, rel=1e-5)
    losses.classification.backward()
    # dL/dH = dL/dB: the gradient at the signs, whatever the size of H.
    at_signs = signs.clone().requires_grad_()
    nn.functional.cross_entropy(net.classifier(torch.sigmoid(at_signs)), labels).backward()
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, at_signs.grad, rtol=1e-4, atol=1e-7)


def test_csq_pulls_codes_to_their_centres_and_not_by_the_classifier(
    net: LatentHashNet, labels: torch.Tensor
) -> None:
    objective = create_objective("csq", bits=H, classes=C)
    centre = objective.centres[labels]
    latent = torch.randn(N, H, requires_grad=True)
    output = LatentOutput(latent, latent, torch.sigmoid(latent), torch.zeros(N, C))
    losses = objective(output, labels, net.classifier)
    a = torch.sigmoid(latent.detach()).numpy()
    c = centre.numpy()
    central = -np.mean(c * np.log(a) + (1 - c) * np.log(1 - a))
    rough = np.mean(np.log(np.cosh(np.abs(2 * a - 1) - 1)))
    expected = central + 1e-4 * rough + losses.classification.item()
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    (grad,) = torch.autograd.grad(losses.classification, latent, allow_unused=True)
    assert grad is None


@pytest.mark.parametrize(("bits", "classes"), [(16, 10), (64, 100), (128, 100), (512, 100)])
def test_hadamard_centres_are_half_the_bits_apart(bits: int, classes: int) -> None:
    centres = hash_centres(bits, classes, torch.Generator().manual_seed(0))
    distances = torch.cdist(centres, centres, p=1)
    distances.fill_diagonal_(bits)
    assert float(distances.min()) >= bits / 2


@pytest.mark.parametrize(("bits", "classes"), [(48, 10), (12, 10), (16, 100)])
def test_drawn_centres_are_balanced_and_distinct(bits: int, classes: int) -> None:
    centres = hash_centres(bits, classes, torch.Generator().manual_seed(0))
    assert set(centres.unique().tolist()) == {0.0, 1.0}
    assert bool((centres.sum(dim=1) == bits // 2).all())
    assert len(torch.unique(centres, dim=0)) == classes


@pytest.mark.parametrize("name", objectives())
def test_several_labels_an_image(net: LatentHashNet, output: LatentOutput, name: str) -> None:
    targets = torch.zeros(N, C, dtype=torch.bool)
    targets[:, 0] = True
    targets[::2, 3] = True
    objective = create_objective(name, bits=H, classes=C)
    losses = objective(output, targets, net.classifier)
    losses.total.backward()
    assert net.latent.weight.grad is not None
    assert bool(torch.isfinite(net.latent.weight.grad).all())
    assert net.classifier is not None
    signs = torch.where(output.latent >= 0, 1.0, -1.0)
    read = torch.sigmoid(signs) if name == "greedyhash" else output.activations
    scores = net.classifier(read)
    expected = nn.functional.binary_cross_entropy_with_logits(scores, targets.float())
    assert losses.classification.item() == pytest.approx(expected.item())


def test_unknown_objective() -> None:
    with pytest.raises(InvalidInputError, match=r"one of cnnh, cnnh\+, csq, greedyhash, .*'hinge'"):
        create_objective("hinge", bits=H, classes=C)
