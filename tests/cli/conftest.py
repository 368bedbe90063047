"""A small model of handwritten digits, trained for a few seconds, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 24-bit model of ``digits#train``. Copy it before changing it."""
    from hashlens import train

    out = tmp_path_factory.mktemp("digits") / "model"
    train("digits#train", out, bits=24, epochs=6, progress=False)
    return out
