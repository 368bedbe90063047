"""Shared fixtures: where the real data lies, and a home of its own for each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} is unset: set it to the folder with the real files")
    return Path(value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with ``mnist/`` and ``cifar10/``, from ``HASHLENS_DATA``."""
    return _folder("HASHLENS_DATA")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Folder with the MobileNetV2 weights, from ``HASHLENS_WEIGHTS``."""
    return _folder("HASHLENS_WEIGHTS")
