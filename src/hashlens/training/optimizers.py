"""The optimizer: its groups of weights and their rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hashlens.training.config import TrainingConfig

if TYPE_CHECKING:
    from hashlens.models.latent import LatentHashNet

_LEVELS = 8


def create_optimizer(net: LatentHashNet, config: TrainingConfig) -> torch.optim.Optimizer:
    """Create the optimizer that a configuration asks for.

    Rates: the latent layer's is the base; F8's and the backbone's are multiples of it, and the
    backbone's falls geometrically towards its first layer (``layer_decay``). Biases and
    normalisation weights are not decayed.

    Parameters
    ----------
    net : LatentHashNet
        The network; weights that need no gradient are left out.
    config : TrainingConfig
        Resolved.
    """
    groups = parameter_groups(net, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    nesterov = config.schedule != "step" and config.momentum > 0
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov
    )


def parameter_groups(net: LatentHashNet, config: TrainingConfig) -> list[dict[str, Any]]:
    """Weights by rate and decay.

    Parameters
    ----------
    net : LatentHashNet
        The network; weights that need no gradient are left out.
    config : TrainingConfig
        Resolved.

    Returns
    -------
    list of dict
        As torch's optimizers take them.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    backbone = [name for name, _ in net.named_parameters() if name.startswith("backbone.")]
    place = {name: index / max(1, len(backbone) - 1) for index, name in enumerate(backbone)}
    for name, weight in net.named_parameters():
        if not weight.requires_grad:
            continue
        rate = config.learning_rate
        if name in place:
            below = round((1 - place[name]) * _LEVELS) / _LEVELS
            rate *= config.backbone_rate * config.layer_decay**below
        elif name.startswith("classifier."):
            rate *= config.classifier_rate
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]
