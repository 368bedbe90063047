"""Fixtures of the index: an encoder, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pixel_encoder import PixelEncoder, save_pictures

from hashlens import HashIndex


@pytest.fixture
def encoder() -> PixelEncoder:
    return PixelEncoder()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return save_pictures(tmp_path / "pictures", 12)


@pytest.fixture
def index(tmp_path: Path, encoder: PixelEncoder) -> HashIndex:
    """An empty index of the encoder's codes."""
    return HashIndex.create(tmp_path / "x.idx", encoder, model=tmp_path / "model")
