"""A model on disk: a directory of ``model.json`` and the weights that it names, no pickle.

The weights' file is named after its content. A save writes it aside, syncs, and then replaces
``model.json`` in one step; whatever stops the save before that step leaves the old model whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hashlens.data.preprocessing import VectorInput
from hashlens.errors import ModelError, first_line, writing_model
from hashlens.files import make_folder, move, remove_abandoned, replace_file
from hashlens.machine import has_cuda, keep_freed_memory
from hashlens.models.backbones import create_backbone
from hashlens.models.description import (
    CARD_NAME,
    CONFIG_NAME,
    FORMAT_VERSION,
    TWIN_NAME,
    WEIGHTS_NAME,
    ModelConfig,
    Twin,
    described_files,
    read_config,
    read_twin,
)
from hashlens.models.encoder import EncodedPixels, NetworkInput
from hashlens.models.latent import LatentHashNet

_FILES = rf"{WEIGHTS_NAME}|{TWIN_NAME}"


def save_model(directory: Path, net: LatentHashNet, config: ModelConfig) -> ModelConfig:
    """Write a model; an older one in the same directory stays whole until this one is."""
    state = {name: value.contiguous() for name, value in net.plain_state().items()}
    config = replace(config, format_version=FORMAT_VERSION)
    config = replace(config, fingerprint=fingerprint(state, config))
    weights_name = f"weights-{config.fingerprint[:12]}.safetensors"
    advice = "; a model that was there is kept: free space or choose another --out"
    with writing_model(f"{directory}: the model", advice):
        make_folder(directory)
        replace_file(directory / weights_name, save(state))
        _write_config(directory, config, weights_name, None)
        _remove_others(directory, weights_name)
    return config


def replace_model(directory: Path, new: Path) -> None:
    """Move the model in ``new``, on the same disk, to ``directory``, in the order of a save."""
    load_model(new)
    names = described_files(new)
    with writing_model(f"{directory}:"):
        make_folder(directory)
        for name in (*names, CARD_NAME, CONFIG_NAME):
            if (new / name).is_file():
                move(new / name, directory / name)
        _remove_others(directory, *names)


def load_model(directory: Path) -> tuple[LatentHashNet, ModelConfig]:
    """Read a model, in evaluation mode on the CPU."""
    config, weights = read_config(directory)
    try:
        state = load_file(weights)
    except FileNotFoundError as error:
        raise ModelError(
            f"{weights}: the weights that {CONFIG_NAME} names are missing; copy the whole "
            "directory, or train again"
        ) from error
    except Exception as error:  # torch raises anything on shapes that no writer makes
        raise ModelError(
            f"{weights}: the weights are cut or damaged ({first_line(error)}); copy or train the "
            "model again"
        ) from error
    if unknown := {str(value.dtype) for value in state.values() if value.dtype not in _TYPES}:
        raise ModelError(
            f"{weights}: the weights are of type {', '.join(sorted(unknown))}, expected float32; "
            "convert them, and train the model again"
        )
    if empty := sorted(name for name, value in state.items() if not value.numel()):
        raise ModelError(
            f"{weights}: the weights {empty[0]:.100} are empty, of a shape that no network has; "
            "train the model again"
        )
    if fingerprint(state, config) != config.fingerprint:
        raise ModelError(
            f"{weights}: the weights are not those that {CONFIG_NAME} describes; copy the whole "
            "directory again"
        )
    with torch.device("meta"):  # shapes without memory: a description may ask for any width
        expected = {name: value.shape for name, value in _build(config, state).state_dict().items()}
    if expected != {name: value.shape for name, value in state.items()}:
        raise ModelError(
            f"{weights}: the weights do not fit the backbone {config.backbone}, perhaps because "
            "another timm release builds it differently; install the versions in the model card"
        )
    net = _build(config, state)
    net.load_state_dict(state)
    return net.eval(), config


# What networks and their counters are made of.
_TYPES = (torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def _build(config: ModelConfig, state: Mapping[str, Tensor]) -> LatentHashNet:
    """The network that a model describes, with other weights."""
    image = config.preprocessing
    if isinstance(image, VectorInput):
        backbone = create_backbone(config.backbone)
    else:
        backbone = create_backbone(config.backbone, channels=image.channels, size=image.size)
    layered = "feature_layer.weight" in state
    net = LatentHashNet(
        backbone.module,
        feature_dim=backbone.feature_dim if layered else config.feature_dim,
        bits=config.bits,
        classes=len(config.classes),
        feature_layer=config.feature_dim if layered else 0,
        plain="feature_classifier.weight" in state,
        anchors=len(state.get("kernel.anchors", ())),
        waves="phase" in state,
    )
    if config.feature_scaling != "none":
        net.set_feature_scaling(torch.zeros(net.feature_dim), torch.ones(net.feature_dim))
    return net


class TorchRunner:
    """Runs a network in evaluation mode, float32."""

    def __init__(self, net: LatentHashNet, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._net = net.to(self._device).eval()
        self._layout = torch.contiguous_format
        if self._device.type == "cpu":
            keep_freed_memory()
            # oneDNN's convolutions are faster with the channels of a pixel side by side.
            self._layout = torch.channels_last
            self._net = self._net.to(memory_format=self._layout)

    @torch.inference_mode()
    def run(self, images: NetworkInput) -> EncodedPixels:
        """Prepared images (n, channels, size, size), or vectors (n, width), to their outputs."""
        layout = self._layout if images.ndim == 4 else torch.contiguous_format
        batch = torch.from_numpy(images).to(self._device, memory_format=layout)
        out = self._net(batch)
        outputs = (out.latent, out.features, out.scores)[: 3 if out.scores.shape[1] else 2]
        return EncodedPixels.of(*(each.float().cpu().numpy() for each in outputs))


def load_torch(directory: Path, device: str | None) -> tuple[ModelConfig, TorchRunner]:
    """Load a model directory."""
    net, config = load_model(directory)
    device = device or ("cuda" if has_cuda() else "cpu")
    try:
        return config, TorchRunner(net, device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it lacks CUDA
        raise ModelError(
            f"device {device!r} cannot be used ({first_line(error)}); use 'cpu'"
        ) from error


def update_config(directory: Path, **changes: Any) -> ModelConfig:
    """Change entries that the weights do not depend on, such as ``radius`` or ``training``."""
    config, weights = read_config(directory)
    config = replace(config, **changes)
    with writing_model(f"{directory}: {CONFIG_NAME}"):
        _write_config(directory, config, weights.name, read_twin(directory))
    return config


def fingerprint(state: Mapping[str, Tensor], config: ModelConfig) -> str:
    """SHA-256 over weights, backbone, preprocessing and bits, in hexadecimal.

    The backbone's name holds what its weights do not, such as how it pads. Models of format 1
    were digested without it and keep their fingerprint, so that their indexes stay valid.
    """
    digest = hashlib.sha256()
    described: dict[str, Any] = {
        "bits": config.bits,
        "preprocessing": config.preprocessing.to_dict(),
    }
    if config.format_version > 1:
        described["backbone"] = config.backbone
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name in sorted(state):
        array = state[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def keep_twin(directory: Path, data: bytes) -> None:
    """Write a model's ONNX twin into its folder, and what it is into its description."""
    config, weights = read_config(directory)
    path = directory / f"twin-{config.fingerprint[:12]}.onnx"
    replace_file(path, data)
    digests = [hashlib.sha256(each).hexdigest() for each in (data, weights.read_bytes())]
    twin = Twin(path, *digests)
    _write_config(directory, config, weights.name, twin)


def _remove_others(directory: Path, *kept: str) -> None:
    remove_abandoned(directory)
    for path in directory.iterdir():
        if re.fullmatch(_FILES, path.name) and path.name not in kept:
            path.unlink()


def _write_config(
    directory: Path, config: ModelConfig, weights_name: str, twin: Twin | None
) -> None:
    values = {**config.to_dict(), "weights": weights_name}
    if twin is not None:
        digests = twin._asdict()
        values["twin"] = {"file": digests.pop("path").name, **digests}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    replace_file(directory / CONFIG_NAME, text)
