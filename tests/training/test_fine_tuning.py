"""Fine-tuning keeps a pre-trained backbone's statistics, and therefore learns."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hashlens import open_source
from hashlens.models.backbones import create_backbone
from hashlens.models.checkpoint import load_model
from hashlens.training.config import TrainingConfig
from hashlens.training.fit import fit
from hashlens.training.folder import TrainingResult
from hashlens.training.recipes import configure

needs_photographs = pytest.mark.skipif(
    not (os.environ.get("HASHLENS_DATA") and os.environ.get("HASHLENS_WEIGHTS")),
    reason="HASHLENS_DATA and HASHLENS_WEIGHTS name no real images and weights",
)


def _config(backbone: str, weights: str, **values: object) -> TrainingConfig:
    source = open_source(str(Path(os.environ["HASHLENS_DATA"]) / "grocery#train"))
    defaults = {
        "backbone": f"timm:{backbone}",
        "weights": str(Path(os.environ["HASHLENS_WEIGHTS"]) / weights),
        "freeze_backbone": False,
        "size": 64,
        "batch_size": 32,
        "precision": "fp32",
        "validation": 0.2,
    }
    return configure("finetune", {**defaults, **values}, source)[0]


def _fine_tune(config: TrainingConfig, out: Path, images: int) -> TrainingResult:
    source = open_source(str(Path(os.environ["HASHLENS_DATA"]) / "grocery#train"))
    few = np.flatnonzero(source.labels < 10)  # the first ten of 81 classes
    rows = np.random.default_rng(0).permutation(few)[:images]
    return fit(source.subset(np.sort(rows)), config, out, progress=False)


def _statistics(config: TrainingConfig, net: torch.nn.Module | None = None) -> dict[str, object]:
    if net is None:
        assert config.backbone is not None
        net = create_backbone(
            config.backbone, size=config.size, weights=Path(config.weights or "")
        ).module
    return {name: value for name, value in net.state_dict().items() if "running_" in name}


@needs_photographs
@pytest.mark.parametrize(
    ("backbone", "weights", "values"),
    [
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0_imagenet.safetensors", {}),
        # Folded statistics stay frozen even where a recipe would let them move.
        ("mobilenetv2_100", "mobilenetv2_100_imagenet.safetensors", {"freeze_statistics": False}),
    ],
)
def test_fine_tuning_keeps_the_running_statistics(
    tmp_path: Path, backbone: str, weights: str, values: dict[str, object]
) -> None:
    config = _config(backbone, weights, epochs=1, **values)
    _fine_tune(config, tmp_path / "m", 80)
    net, _ = load_model(tmp_path / "m")
    before, after = _statistics(config), _statistics(config, net.backbone)
    assert before.keys() == after.keys()
    assert before
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


@needs_photographs
def test_a_few_steps_of_fine_tuning_lift_the_accuracy(tmp_path: Path) -> None:
    config = _config(
        "mobilenetv2_100", "mobilenetv2_100_imagenet.safetensors", epochs=3, size=96, bits=32
    )
    result = _fine_tune(config, tmp_path / "m", 400)
    assert result.history[-1]["accuracy"] > 0.35  # ten classes: chance is about 0.1
