"""A model on disk: round trip, damage, other versions, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_models import FOLDER, golden_pictures
from PIL import Image

from hashlens import Encoder, HashIndex, IndexStoreError, ModelError, files
from hashlens.models.checkpoint import load_model, read_config, save_model, update_config


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may break."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def _weights(directory: Path) -> Path:
    (path,) = directory.glob("*.safetensors")
    return path


def test_round_trip(model_dir: Path, tmp_path: Path) -> None:
    net, config = load_model(model_dir)
    config = replace(config, radius=3, training={"data": {"images": 7}}, multi_label=True)
    saved = save_model(tmp_path / "again", net, config)
    again, read = load_model(tmp_path / "again")
    assert read == saved == config  # the fingerprint too: the same weights
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(net(images), again(images), strict=True))
    assert sorted(path.suffix for path in (tmp_path / "again").iterdir()) == [
        ".json",
        ".safetensors",
    ]


def test_the_fingerprint_follows_weights_backbone_preprocessing_and_nothing_else(
    model_dir: Path, tmp_path: Path
) -> None:
    net, config = load_model(model_dir)
    prints = [config.fingerprint]
    other = replace(config, preprocessing=replace(config.preprocessing, resize="crop"))
    prints.append(save_model(tmp_path / "preprocessing", net, other).fingerprint)
    other = replace(config, backbone="resnet9?width=2&pad=same")
    prints.append(save_model(tmp_path / "backbone", net, other).fingerprint)
    with torch.no_grad():
        net.latent.bias[0] += 1
    prints.append(save_model(tmp_path / "weights", net, config).fingerprint)
    assert len(set(prints)) == 4
    before = read_config(tmp_path / "weights")[0]
    assert update_config(tmp_path / "weights", radius=5).fingerprint == before.fingerprint
    assert read_config(tmp_path / "weights")[0] == replace(before, radius=5)


def test_a_model_of_format_1_keeps_its_fingerprint_and_its_index(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(FOLDER / "format-1", model)
    old = read_config(model)[0]
    with HashIndex.create(tmp_path / "old.idx", Encoder.load(model)) as index:
        index.add(golden_pictures())
    updated = update_config(model, radius=5)
    assert (updated.format_version, updated.fingerprint) == (1, old.fingerprint)
    with HashIndex.open(tmp_path / "old.idx", Encoder.load(model)) as index:
        assert index.search(golden_pictures()[4], k=1)[0].id == 4
    saved = save_model(tmp_path / "new", *load_model(model))
    assert saved.format_version == 3
    assert saved.fingerprint != old.fingerprint
    with pytest.raises(IndexStoreError, match="made with model"):
        HashIndex.open(tmp_path / "old.idx", Encoder.load(tmp_path / "new"))


def test_backbones_that_differ_in_padding_alone_share_no_index(
    make_model: Callable[..., Path], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    plain, same = tmp_path / "plain", tmp_path / "same"
    net, config = load_model(make_model(plain, backbone="timm:mobilenetv2_050", size=32))
    save_model(same, net, replace(config, backbone=f"{config.backbone}?pad_type=same"))
    one, other = Encoder.load(plain), Encoder.load(same)
    assert (one.encode(pictures)[1] != other.encode(pictures)[1]).any()
    HashIndex.create(tmp_path / "one.idx", one).close()
    with pytest.raises(IndexStoreError, match="made with model"):
        HashIndex.open(tmp_path / "one.idx", other)


def test_saving_again_leaves_one_set_of_weights_and_other_files(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    net, config = load_model(copy)
    with torch.no_grad():
        net.latent.bias += 1
    save_model(copy, net, config)
    assert _weights(copy)
    assert (copy / "notes.txt").read_text() == "mine"
    assert torch.equal(load_model(copy)[0].latent.bias, net.latent.bias)


def _change(**changes: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda d: [shutil.rmtree(d), d.touch()], "expected the folder of a model"),
        (lambda d: (d / "model.json").unlink(), "no model here"),
        (lambda d: _weights(d).unlink(), "missing; copy the whole"),
        (lambda d: os.truncate(_weights(d), _weights(d).stat().st_size // 2), "cut or damaged"),
        (lambda d: os.truncate(_weights(d), 4), "cut or damaged"),
        (lambda d: os.truncate(d / "model.json", 100), "cut or foreign"),
        (lambda d: (d / "model.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda d: (d / "model.json").write_text("[1]"), "not a Hashlens model"),
        (_change(format="other"), "not a Hashlens model"),
        (_change(format_version=4), "upgrade"),
        (_change(format_version=1), "not those that"),
        (_change(backbone="resnet9?width=3"), "not those that"),
        (_change(bits=4), "8 to 4096"),
        (_change(bits=24), "not those that"),
        (_change(preprocessing={}), "missing or wrong"),
        (_change(classes=["cat"]), "do not fit"),
        (_change(feature_scaling="centred"), "do not fit"),
        (_change(feature_scaling="odd"), "missing or wrong"),
        (_change(mode="odd"), "missing or wrong"),
        (_change(weights="../other.safetensors"), "next to it"),
    ],
)
def test_damage_is_named(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(copy)
    assert "model" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_changed_weight_is_noticed(copy: Path) -> None:
    data = bytearray(_weights(copy).read_bytes())
    data[-10] ^= 1
    _weights(copy).write_bytes(data)
    with pytest.raises(ModelError, match="not those that"):
        load_model(copy)


@pytest.mark.parametrize("survives", [0, 1])
def test_a_save_that_fails_keeps_the_old_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """The disk fills while the weights are written, or after them at ``model.json``."""
    net, config = load_model(copy)
    old = net.latent.bias.detach().clone()
    with torch.no_grad():
        net.latent.bias += 1
    calls = iter(range(10))

    def full(descriptor: int) -> None:
        if next(calls) >= 2 * survives:  # each written file is synced, and then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ModelError, match="no space left on device"):
        save_model(copy, net, config)
    monkeypatch.undo()
    assert torch.equal(load_model(copy)[0].latent.bias, old)
    assert not list(copy.glob(".*"))


@contextmanager
def _small_disk(path: Path, size: int) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs root")
def test_a_full_disk_keeps_the_old_model(model_dir: Path, tmp_path: Path) -> None:
    net, config = load_model(model_dir)
    size = _weights(model_dir).stat().st_size
    with _small_disk(tmp_path / "disk", int(1.5 * size) + 40_000):
        directory = tmp_path / "disk" / "model"
        save_model(directory, net, config)
        old = net.latent.bias.detach().clone()
        with torch.no_grad():
            net.latent.bias += 1
        (tmp_path / "disk" / "filler").write_bytes(b"x" * 40_000)
        with pytest.raises(ModelError, match="no space left on device"):
            save_model(directory, net, config)
        assert torch.equal(load_model(directory)[0].latent.bias, old)
