"""Rates and decay of each part of the network."""

from __future__ import annotations

import pytest
from torch import nn

from hashlens.models.latent import LatentHashNet
from hashlens.training.config import TrainingConfig
from hashlens.training.module import create_optimizer, parameter_groups


@pytest.fixture
def net() -> LatentHashNet:
    backbone = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    return LatentHashNet(backbone, feature_dim=4, bits=8, classes=2)


def _rates(net: LatentHashNet, config: TrainingConfig) -> dict[str, tuple[float, float]]:
    names = {id(weight): name for name, weight in net.named_parameters()}
    return {
        names[id(weight)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(net, config)
        for weight in group["params"]
    }


def test_rates_fall_towards_the_first_layer_and_rise_on_the_classifier(net: LatentHashNet) -> None:
    config = TrainingConfig(
        learning_rate=1.0, backbone_rate=0.5, layer_decay=0.01, classifier_rate=10.0
    )
    rates = _rates(net, config)
    assert rates["latent.weight"] == (1.0, 5e-4)
    assert rates["latent.bias"] == (1.0, 0.0)
    assert rates["classifier.weight"] == (10.0, 5e-4)
    assert rates["backbone.8.bias"][0] == pytest.approx(0.5)
    assert rates["backbone.0.weight"][0] == pytest.approx(0.005)
    layers = [rates[f"backbone.{i}.weight"][0] for i in range(9)]
    assert layers == sorted(layers)


def test_biases_have_a_rate_of_their_own(net: LatentHashNet) -> None:
    config = TrainingConfig(learning_rate=1.0, classifier_rate=10.0, bias_rate=2.0)
    rates = _rates(net, config)
    assert rates["latent.weight"][0] == rates["backbone.3.weight"][0] == 1.0
    assert rates["latent.bias"][0] == rates["backbone.3.bias"][0] == 2.0
    assert (rates["classifier.weight"][0], rates["classifier.bias"][0]) == (10.0, 20.0)


def test_every_weight_is_in_one_group_and_frozen_ones_in_none(net: LatentHashNet) -> None:
    assert len(_rates(net, TrainingConfig())) == len(list(net.parameters()))
    net.backbone.requires_grad_(False)
    assert {n.split(".")[0] for n in _rates(net, TrainingConfig())} == {"latent", "classifier"}


def test_the_authors_solver_has_plain_momentum(net: LatentHashNet) -> None:
    assert create_optimizer(net, TrainingConfig(schedule="step")).defaults["nesterov"] is False
    assert create_optimizer(net, TrainingConfig()).defaults["nesterov"] is True
