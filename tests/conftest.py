"""Shared fixtures: where the real data is, and a home of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from image_builders import write_bad_images, write_class_folder, write_odd_images

# Machines differ in speed, and the first call of a kernel compiles it: no test asserts a time.
settings.register_profile("hashlens", deadline=None)
settings.load_profile("hashlens")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="writers that test_crash.py kills")


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


@pytest.fixture
def bad_images(tmp_path: Path) -> dict[str, Path]:
    """Files that are named like images and cannot be read, by what is wrong with them."""
    return write_bad_images(tmp_path / "bad")


@pytest.fixture
def odd_images(tmp_path: Path) -> dict[str, Path]:
    """Images of unusual kinds (animated, CMYK, 16-bit, transparent, rotated), by kind."""
    return write_odd_images(tmp_path / "odd")


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """A folder with three classes of twelve small colour images each."""
    return write_class_folder(tmp_path / "classes", per_class=12)


@pytest.fixture
def object_store() -> Iterator[Any]:
    """An empty object store of fsspec's, at ``memory://``: all tests of a process share the one."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.rm("/", recursive=True)
    yield store
    store.rm("/", recursive=True)
