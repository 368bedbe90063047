"""A real index of small pictures with a real encoder, and a real server on the loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from serving import LABELS, SIDE, Service, draw, png, running

from hashlens import Encoder, HashIndex


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, as LSH on learned features would have."""
    torch = pytest.importorskip("torch", reason="needs the extra 'train'")
    from hashlens.models.backbones import create_backbone
    from hashlens.models.checkpoint import save_model
    from hashlens.models.description import ModelConfig
    from hashlens.models.latent import LatentHashNet

    torch.manual_seed(5)
    built = create_backbone("resnet9?width=4", channels=3, size=SIDE)
    net = LatentHashNet(
        built.module, feature_dim=built.feature_dim, bits=24, classes=3, latent_normalisation=True
    )
    with torch.no_grad():  # one training pass gives the batch norms real statistics
        net(torch.randn(64, 3, SIDE, SIDE))
    directory = tmp_path_factory.mktemp("service-model") / "model"
    config = ModelConfig(24, built.feature_dim, LABELS, built.name, built.preprocessing, radius=6)
    save_model(directory, net, config)
    return directory


@pytest.fixture(scope="session")
def onnx_file(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model_dir`` exported: starts a process faster, and without torch."""
    from hashlens.models.export import export_onnx

    path = tmp_path_factory.mktemp("service-onnx") / "model.onnx"
    export_onnx(model_dir, path)
    return path


@pytest.fixture(scope="session")
def encoder(model_dir: Path) -> Encoder:
    return Encoder.load(model_dir)


@pytest.fixture(scope="session")
def index_dir(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, model_dir: Path) -> Path:
    """90 labelled pictures with metadata. Read only; copy it to write."""
    home = tmp_path_factory.mktemp("service-index").resolve()
    paths, labels, metadata = [], [], []
    for i in range(90):
        label = LABELS[i % 3]
        path = home / "pictures" / label / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(draw(label, i)))
        paths.append(path)
        labels.append(label)
        metadata.append({"shelf": "left" if i % 2 else "right", "price": i})
    index = HashIndex.create(home / "shapes.idx", encoder, model=model_dir)
    index.add(paths, labels=labels, metadata=metadata)
    index.close()
    return home / "shapes.idx"


@pytest.fixture
def writable_dir(index_dir: Path, tmp_path: Path) -> Path:
    """A copy of the index that a test may write to."""
    return Path(shutil.copytree(index_dir, tmp_path.resolve() / "copy.idx"))


@pytest.fixture(scope="session")
def service(index_dir: Path, encoder: Encoder) -> Iterator[Service]:
    """The read-only service most tests talk to."""
    with running(index_dir, encoder) as service:
        yield service


_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")  # its event loop runs in this thread meanwhile
def browser() -> Iterator[Any]:
    """A real browser."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'dev'")
    api.expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium: install Debian's chromium package")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = playwright.chromium.launch(executable_path=path, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A cross that is not in the index, as PNG."""
    return png(draw("cross", 10_007))
