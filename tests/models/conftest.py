"""Small models with random weights, saved once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashlens.models.backbones import create_backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.description import ModelConfig
from hashlens.models.latent import LatentHashNet

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Writes a model with seeded random weights; returns its directory."""

    def make(
        directory: Path,
        *,
        bits: int = 20,
        classes: tuple[str, ...] = CLASSES,
        backbone: str = "resnet9?width=2",
        channels: int = 3,
        size: int = 16,
        seed: int = 0,
        weights: Path | None = None,
    ) -> Path:
        torch.manual_seed(seed)
        built = create_backbone(backbone, channels=channels, size=size, weights=weights)
        net = LatentHashNet(
            built.module,
            feature_dim=built.feature_dim,
            bits=bits,
            classes=len(classes),
            latent_normalisation=True,
        )
        with torch.no_grad():  # one training pass gives the batch norms real statistics
            net(torch.randn(32, channels, size, size))
        config = ModelConfig(bits, built.feature_dim, classes, built.name, built.preprocessing)
        save_model(directory, net, config)
        return directory

    return make


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A colour model of 20 bits and three classes. Read only."""
    return make_model(tmp_path_factory.mktemp("model") / "colour")


@pytest.fixture(scope="session")
def onnx_file(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model_dir`` exported. Read only."""
    from hashlens.models.export import export_onnx

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(model_dir, path)
    return path


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Nine colour pictures of differing sizes, smooth enough to look like some."""
    random = np.random.default_rng(7)
    images = []
    for i in range(9):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        images.append(coarse.resize((20 + 3 * i, 30), Image.Resampling.BICUBIC))
    return images


@pytest.fixture
def photos(pictures: list[Image.Image], tmp_path: Path) -> Path:
    """The pictures as PNG files in a folder a class, three in each."""
    for i, picture in enumerate(pictures):
        folder = tmp_path / "photos" / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
    return tmp_path / "photos"
