"""The network's wiring, and the folding of its normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hashlens import InvalidInputError
from hashlens.models.latent import LatentHashNet, scaled_features


def _net(bits: int = 12, classes: int = 4, **options: Any) -> LatentHashNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(75, 30), nn.ReLU())
    return LatentHashNet(backbone, feature_dim=30, bits=bits, classes=classes, **options)


def test_shapes_and_sigmoid() -> None:
    out = _net()(torch.randn(7, 3, 5, 5))
    assert [tuple(part.shape) for part in out] == [(7, 30), (7, 12), (7, 12), (7, 4)]
    assert torch.equal(out.activations, torch.sigmoid(out.latent))
    assert torch.equal(out.activations >= 0.5, out.latent >= 0)


def test_the_classifier_sees_the_image_through_the_latent_layer_alone() -> None:
    net = _net()
    nn.init.zeros_(net.latent.weight)
    first, second = net(torch.randn(2, 1, 3, 5, 5)[0]), net(torch.randn(1, 3, 5, 5))
    assert not torch.allclose(first.features, second.features)
    assert torch.equal(first.scores, second.scores)


def test_without_h_the_classifier_reads_f7_and_h_is_not_trained() -> None:
    net = _net(plain=True, latent_normalisation=True)
    assert net.classifier is None
    before = net.latent.weight.clone()
    images = torch.randn(6, 3, 5, 5)
    out = net(images)
    assert net.feature_classifier is not None
    torch.testing.assert_close(out.scores, net.feature_classifier(out.features))
    nn.init.zeros_(net.latent.weight)
    torch.testing.assert_close(net(images).scores, out.scores)
    net.latent.weight.data.copy_(before)
    out.scores.square().mean().backward()
    assert net.latent.weight.grad is None
    assert all(part.grad is not None for part in net.backbone.parameters())


def test_a_network_without_classes_has_no_scores() -> None:
    net = _net(classes=0)
    assert net.classifier is None
    assert net(torch.randn(2, 3, 5, 5)).scores.shape == (2, 0)


def test_folding_keeps_the_function() -> None:
    net = _net(latent_normalisation=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(20):
        net(3 + torch.randn(64, 3, 5, 5)).scores.square().mean().backward()
        optimizer.step()
    net.eval()
    plain = _net().eval()
    plain.load_state_dict(net.plain_state())
    images = 3 + torch.randn(50, 3, 5, 5)
    assert net.normalise is not None
    assert not torch.allclose(net.normalise.weight, torch.ones(12))
    torch.testing.assert_close(plain(images), net(images), rtol=1e-4, atol=1e-5)


def test_normalisation_is_centred_on_the_threshold() -> None:
    net = _net(latent_normalisation=True)
    assert net.normalise is not None
    assert not net.normalise.bias.requires_grad
    out = net(5 + torch.randn(256, 3, 5, 5))
    assert float(out.latent.detach().mean(0).abs().max()) < 1e-4
    share = (out.latent >= 0).float().mean(0)
    assert float(share.min()) > 0.3
    assert float(share.max()) < 0.7


def test_normalisation_keeps_the_sigmoid_out_of_its_flat_ends() -> None:
    """Strong features, as a deep backbone may give, close the plain sigmoid's gradient."""
    shares = []
    for options in ({}, {"latent_normalisation": True}):
        net = _net(**options)
        slope = net.from_features(500 * torch.rand(64, 30)).activations
        shares.append(float((slope * (1 - slope)).detach().mean()))
    assert shares[0] < 0.01
    assert shares[1] > 0.1


@pytest.mark.parametrize("bits", [7, 4097])
def test_refuses_impossible_lengths(bits: int) -> None:
    with pytest.raises(InvalidInputError, match="8 to 4096"):
        _net(bits=bits)


def test_latent_dropout_leaves_out_features_before_h_in_training_only() -> None:
    net = _net(latent_dropout=0.5)
    images = torch.rand(6, 3, 5, 5)
    plain = net.eval()(images)
    torch.testing.assert_close(plain.latent, net.latent(plain.features))
    trained = net.train()(images)
    torch.testing.assert_close(trained.features, plain.features)
    assert not torch.allclose(trained.latent, plain.latent)


def test_scaled_features_leave_latent_and_scores_alone() -> None:
    net = _net().eval()
    images = torch.randn(20, 3, 5, 5)
    raw = net(images)
    assert not any(name.startswith("feature_") for name in net.state_dict())
    mean, scale = raw.features.mean(0).detach(), torch.rand(30)
    scale[3] = 0
    net.set_feature_scaling(mean, scale)
    scaled = net(images)
    for name in ("latent", "activations", "scores"):
        assert torch.equal(getattr(scaled, name), getattr(raw, name))
    expected = (raw.features - mean) * scale
    torch.testing.assert_close(scaled.features, expected / expected.norm(dim=1, keepdim=True))
    assert {"feature_mean", "feature_scale"} <= net.plain_state().keys()


def test_a_zero_vector_stays_zero() -> None:
    features = torch.tensor([[1.0, 2.0], [1.0, 5.0]])
    scaled = scaled_features(features, torch.tensor([1.0, 2.0]), torch.ones(2))
    assert scaled.tolist() == [[0.0, 0.0], [0.0, 1.0]]
