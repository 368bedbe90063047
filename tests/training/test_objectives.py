"""Objectives: each against its paper's formula, written out plainly."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hashlens import InvalidInputError
from hashlens.models.latent import LatentHashNet, LatentOutput
from hashlens.training.objectives import create_objective, objectives
from hashlens.training.objectives.centres import hadamard, hash_centres
from hashlens.training.objectives.pairs import half_signs

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


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 512])
def test_hadamard_matrices_are_orthogonal(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    wide = matrix.astype(int)
    assert set(np.unique(wide)) <= {-1, 1}
    np.testing.assert_array_equal(wide @ wide.T, order * np.eye(order))
    assert bool((wide[0] == 1).all())


@given(
    bits=st.sampled_from([8, 12, 16, 24, 32, 48, 64, 96, 128]),
    classes=st.integers(2, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_centres_are_far_apart_and_no_bit_is_constant(bits: int, classes: int, seed: int) -> None:
    centres = hash_centres(bits, classes, torch.Generator().manual_seed(seed)).numpy()
    assert not (centres == centres[:1]).all(axis=0).any()
    apart = min(int((centres[i] != centres[j]).sum()) for i in range(classes) for j in range(i))
    if classes <= 2 * bits:
        assert apart >= bits // 2
    # Plotkin: the mean distance of all pairs cannot be larger.
    assert apart <= bits * (classes // 2) * -(-classes // 2) / (classes * (classes - 1) / 2)


@pytest.mark.parametrize(("bits", "classes"), [(48, 3), (48, 4), (48, 2), (12, 3)])
def test_few_centres_are_as_far_apart_as_the_bound(bits: int, classes: int) -> None:
    centres = hash_centres(bits, classes, torch.Generator().manual_seed(0))
    distances = torch.cdist(centres, centres, p=1)[~torch.eye(classes, dtype=torch.bool)]
    bound = bits * (classes // 2) * -(-classes // 2) / (classes * (classes - 1) / 2)
    assert float(distances.min()) == bound


@pytest.mark.parametrize(("bits", "classes"), [(48, 10), (64, 10), (128, 10)])
def test_ten_classes_use_every_bit(bits: int, classes: int) -> None:
    centres = hash_centres(bits, classes, torch.Generator().manual_seed(0))
    distances = torch.cdist(centres, centres, p=1)[~torch.eye(classes, dtype=torch.bool)]
    assert float(distances.min()) == bits / 2
    assert len(torch.unique(centres, dim=1).T) == bits


def test_thousands_of_classes_have_different_centres() -> None:
    centres = hash_centres(48, 3000, torch.Generator().manual_seed(0))
    assert len(torch.unique(centres, dim=0)) == 3000


def _given(several: bool) -> tuple[torch.Tensor, LatentOutput, nn.Module]:
    torch.manual_seed(5)
    targets = torch.arange(N) % C
    if several:
        targets = torch.rand(N, C) < 0.4
        targets[:, 0] |= ~targets.any(dim=1)
    latent = torch.randn(N, H)
    return (
        targets,
        LatentOutput(latent, latent, torch.sigmoid(latent), torch.zeros(N, C)),
        nn.Linear(H, C),
    )


def _sets(targets: torch.Tensor) -> list[set[int]]:
    if targets.ndim == 1:
        return [{int(label)} for label in targets]
    return [set(np.flatnonzero(row).tolist()) for row in targets.numpy()]


def _pairs(targets: torch.Tensor) -> list[tuple[int, int, int, float]]:
    """i, j, whether they are similar, and HashNet's weight, pair by pair."""
    sets = _sets(targets)
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]
    alike = {(i, j): int(bool(sets[i] & sets[j])) for i, j in pairs}
    ones = sum(alike.values())
    found = []
    for i, j in pairs:
        weight = len(pairs) / (len(pairs) - ones)
        if alike[i, j]:
            weight = len(sets[i] & sets[j]) / len(sets[i] | sets[j]) * len(pairs) / ones
        found.append((i, j, alike[i, j], weight))
    return found


@pytest.mark.parametrize("several", [False, True])
def test_dpsh_is_the_likelihood_of_pairs_and_quantisation(several: bool) -> None:
    targets, output, classifier = _given(several)
    losses = create_objective("dpsh", bits=H, classes=C)(output, targets, classifier)
    u = output.latent.double().numpy()
    terms = []
    for i, j, s, _ in _pairs(targets):
        p = 1 / (1 + np.exp(-u[i] @ u[j] / 2))
        terms.append(-np.log(p if s else 1 - p))
    expected = np.mean(terms) + 0.1 * np.mean((np.sign(u) - u) ** 2)
    assert (losses.total - losses.classification).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_hashnet_is_the_weighted_likelihood_and_its_tanh_grows(several: bool) -> None:
    targets, output, classifier = _given(several)
    objective = create_objective("hashnet", bits=H, classes=C)
    for steps, beta in [(0, 1.0), (199, 1.0), (250, math.sqrt(2.0)), (10**6, 10.0)]:
        objective.steps.fill_(steps)
        losses = objective(output, targets, classifier)
        g = np.tanh(beta * output.latent.double().numpy())
        terms = []
        for i, j, s, w in _pairs(targets):
            p = 1 / (1 + np.exp(-10 / H * g[i] @ g[j]))
            terms.append(-w * np.log(p if s else 1 - p))
        found = (losses.total - losses.classification).item()
        assert found == pytest.approx(np.mean(terms), rel=1e-4)
        assert int(objective.steps) == steps + 1
    objective.eval()
    objective(output, targets, classifier)
    assert int(objective.steps) == 10**6 + 1


@pytest.mark.parametrize("several", [False, True])
def test_dch_is_cauchy_cross_entropy_and_quantisation(several: bool) -> None:
    targets, output, classifier = _given(several)
    losses = create_objective("dch", bits=H, classes=C)(output, targets, classifier)
    h, gamma = np.tanh(output.latent.double().numpy()), 20.0

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(H / 2 * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    terms = []
    for i, j, s, w in _pairs(targets):
        d = distance(h[i], h[j])
        terms.append(w * (s * np.log(d / gamma) + np.log(1 + gamma / d)))
    rough = [np.log(1 + distance(np.abs(row), np.ones(H)) / gamma) for row in h]
    expected = np.mean(terms) + 0.1 * np.mean(rough)
    assert (losses.total - losses.classification).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_orthohash_is_the_cosine_softmax_with_a_margin(several: bool) -> None:
    targets, output, classifier = _given(several)
    objective = create_objective("orthohash", bits=H, classes=C)
    losses = objective(output, targets, classifier)
    v, o = output.latent.double().numpy(), objective.centres.double().numpy()
    terms = []
    for row, own in zip(v, _sets(targets), strict=True):
        logits = [
            math.sqrt(H) * (row @ o[c] / np.linalg.norm(row) / math.sqrt(H) - 0.2 * (c in own))
            for c in range(C)
        ]
        log_sum = np.log(np.sum(np.exp(logits)))
        terms.append(np.mean([log_sum - logits[c] for c in own]))
    found = (losses.total - losses.classification).item()
    assert found == pytest.approx(np.mean(terms), rel=1e-4)


def _agreement_and_rate(
    z: np.ndarray, things: list[set[int]], targets: np.ndarray, weight: float
) -> float:
    """Mean cross entropy of views z with the targets' bits, less the coding rate of the means."""
    a = 1 / (1 + np.exp(-z))
    entropy = -np.mean(np.where(targets >= 0, np.log(a), np.log(1 - a)))
    means = [np.mean([z[i] for i in range(len(z)) if g in things[i]], axis=0)
             for g in sorted(set.union(*things))]  # fmt: skip
    unit = np.stack([mean / np.linalg.norm(mean) for mean in means])
    spread = np.linalg.eigvalsh(unit.T @ unit) * H / (len(unit) * 0.05)
    return float(entropy - weight * np.sum(np.log(1 + spread)) / 2 * (1 / H + 1 / len(unit)))


@pytest.mark.parametrize("several", [False, True])
def test_crovca_is_agreement_with_the_class_and_the_coding_rate(several: bool) -> None:
    targets, output, classifier = _given(several)
    objective, things = create_objective("crovca", bits=H, classes=C), _sets(targets)
    remembered = np.zeros((C, H))
    for latent in (output.latent, torch.randn(N, H)):  # the second batch changes a tenth
        z = latent.double().numpy()
        for g in set.union(*things):
            mean = np.mean([z[i] for i in range(N) if g in things[i]], axis=0)
            remembered[g] = 0.9 * remembered[g] + 0.1 * mean
        losses = objective(output._replace(latent=latent), targets, classifier)
        wanted = np.stack([sum(remembered[g] for g in own) for own in things])
        expected = _agreement_and_rate(z, things, wanted, 0.4)
        assert (losses.total - losses.classification).item() == pytest.approx(expected, rel=1e-4)


def test_crovca_unsupervised_has_two_views_of_an_image_and_reads_no_labels() -> None:
    targets, output, classifier = _given(False)
    objective = create_objective("crovca-unsupervised", bits=H, classes=C)
    z, half = output.latent.double().numpy(), N // 2
    wanted = np.tile(z[:half] + z[half:], (2, 1))
    expected = _agreement_and_rate(z, [{i % half} for i in range(N)], wanted, 0.3)
    for labels in (targets, targets.flip(0)):
        losses = objective(output, labels, classifier)
        assert (losses.total - losses.classification).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["crovca", "crovca-unsupervised"])
def test_crovca_moves_equal_bits_apart(name: str) -> None:
    """What failed before: without enough of the coding rate all bits become one."""
    torch.manual_seed(1)
    targets = torch.arange(N // 2).repeat(2)
    latent = (torch.randn(N, 1) + 0.01 * torch.randn(N, H)).requires_grad_()
    objective = create_objective(name, bits=H, classes=N // 2)
    optimizer = torch.optim.SGD([latent], lr=1.0)

    def correlation() -> float:
        return float(torch.corrcoef(latent.detach().T).abs().mean())

    before = correlation()
    for _ in range(300):
        output = LatentOutput(latent, latent, torch.sigmoid(latent), torch.zeros(N, N // 2))
        optimizer.zero_grad()
        objective(output, targets, nn.Linear(H, N // 2)).total.backward()
        optimizer.step()
    assert before > 0.99
    assert correlation() < 0.6


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_half_of_each_bit_is_one(images: int, seed: int) -> None:
    latent = torch.randn(images, H, generator=torch.Generator().manual_seed(seed))
    codes = half_signs(latent)
    assert bool(((codes == 1).sum(dim=0) == (images + 1) // 2).all())
    if images > 1:
        lowest = latent.masked_fill(codes < 0, math.inf).amin(dim=0)
        highest = latent.masked_fill(codes > 0, -math.inf).amax(dim=0)
        assert bool((lowest >= highest).all())


def test_bihalf_keeps_cosines_and_its_gradient_is_that_at_the_codes() -> None:
    targets, _, classifier = _given(False)
    latent, features = torch.randn(N, H, requires_grad=True), torch.randn(N, 7)
    output = LatentOutput(features, latent, torch.sigmoid(latent), torch.zeros(N, C))
    losses = create_objective("bihalf")(output, targets, classifier)
    u, f = latent.detach().double().numpy(), features.double().numpy()
    b = np.where(u > np.median(u, axis=0), 1.0, -1.0)

    def cosine(a: np.ndarray, c: np.ndarray) -> float:
        return float(a @ c / np.linalg.norm(a) / np.linalg.norm(c))

    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]
    kept = np.mean([(cosine(f[i], f[j]) - cosine(b[i], b[j])) ** 2 for i, j in pairs])
    expected = kept + 0.1 * 0.5 * np.mean((u - b) ** 2)
    assert (losses.total - losses.classification).item() == pytest.approx(expected, rel=1e-4)
    losses.total.backward()
    # dL/dU = dL/dB + gamma (U - B), with the derivative at the codes taken by differences.
    assert latent.grad is not None
    step, moved = 1e-5, b.copy()
    moved[3, 5] += step
    after = np.mean([(cosine(f[i], f[j]) - cosine(moved[i], moved[j])) ** 2 for i, j in pairs])
    wanted = (after - kept) / step + 0.1 * (u - b)[3, 5] / (N * H)
    assert float(latent.grad[3, 5]) == pytest.approx(wanted, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("name", ["dpsh", "hashnet", "dch", "orthohash", "bihalf", "crovca"])
def test_odd_batches_have_finite_losses_and_gradients(name: str) -> None:
    objective = create_objective(name, bits=H, classes=C)
    for labels in (torch.tensor([2]), torch.tensor([2, 2]), torch.tensor([1, 2])):
        latent = torch.ones(len(labels), H, requires_grad=True)
        output = LatentOutput(latent, latent, torch.sigmoid(latent), torch.zeros(len(labels), C))
        total = objective(output, labels, nn.Linear(H, C)).total
        total.backward()
        assert bool(torch.isfinite(total))
        assert latent.grad is not None
        assert bool(torch.isfinite(latent.grad).all())


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
    known = re.escape(f"one of {', '.join(objectives())}, got 'hinge'")
    with pytest.raises(InvalidInputError, match=known):
        create_objective("hinge", bits=H, classes=C)
