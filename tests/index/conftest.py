"""Fixtures of the index: an encoder, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pixel_encoder import PixelEncoder, save_pictures


@pytest.fixture
def encoder() -> PixelEncoder:
    return PixelEncoder()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return save_pictures(tmp_path / "pictures", 12)
