"""A small model of handwritten digits, trained for a few seconds, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 24-bit model of ``digits#train``. Copy it before changing it."""
    from hashlens.data.opening import open_source
    from hashlens.training.fit import image_facts, train
    from hashlens.training.recipes import configure

    source = open_source("digits#train")
    config, _ = configure("auto", {"bits": 24, "epochs": 6}, image_facts(source))
    out = tmp_path_factory.mktemp("digits") / "model"
    train(source, config, out, progress=False)
    return out
