"""Small sources and quick configurations for training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hashlens import open_source
from hashlens.data.source import Source
from hashlens.training.config import TrainingConfig
from hashlens.training.recipes import configure


@pytest.fixture(scope="session")
def digits() -> Source:
    """400 of scikit-learn's digits."""
    return open_source("digits#train").subset(np.arange(400))


@pytest.fixture
def quick(digits: Source) -> Any:
    """Makes a configuration of a few epochs for the digits."""

    def make(**values: Any) -> TrainingConfig:
        defaults = {"bits": 16, "epochs": 3, "precision": "fp32", "validation": 0.2}
        return configure("small", {**defaults, **values}, digits)[0]

    return make


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options for a tiny frozen backbone, with a file of its "pre-trained" weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start") / "test_resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return {"backbone": "timm:test_resnet", "weights": str(path), "freeze_backbone": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten 16 px images, dark and light."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for level, name in ((60, "dark"), (190, "light")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(level - 40, level + 40, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
