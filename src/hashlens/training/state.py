"""The resume state: one safetensors file with tensors and a JSON text, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hashlens.errors import ModelError
from hashlens.files import replace_file

_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"

RUN, BEST, LAST = "run", "best.safetensors", "last.safetensors"


class SafeCheckpointIO(CheckpointIO):
    """Keeps Lightning's checkpoint without pickle; the old one stays until the new one is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        write_state(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint back, on the CPU."""
        state: dict[str, Any] = read_state(Path(path))
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def write_state(state: Any, path: Path) -> None:
    """Write nested plain values and tensors to one safetensors file, in one step."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_pack(state, tensors))
    replace_file(path, lambda aside: save_file(tensors, aside, {"state": text}))


def read_state(path: Path) -> Any:
    """Read what ``write_state`` wrote."""
    try:
        with safe_open(path, "pt") as file:
            packed = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpack(packed, tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: expected a whole training state, got {error}; "
            "start again with --overwrite instead of --resume"
        ) from error


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(item, tensors) for key, item in value.items()}
        return {_PAIRS: [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot keep a {type(value).__name__} in a training state")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if set(value) == {_PAIRS}:
        return {key: _unpack(item, tensors) for key, item in value[_PAIRS]}
    if set(value) == {_TUPLE}:
        return tuple(_unpack(item, tensors) for item in value[_TUPLE])
    return {key: _unpack(item, tensors) for key, item in value.items()}
