"""Starting weights from a file: safetensors, or a PyTorch state dict, read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hashlens.errors import ModelError
from hashlens.models.backbones import StartWeights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict."""
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path}: expected a state dict (names to tensors), got {type(state).__name__}; "
            "save it with torch.save(model.state_dict(), FILE)"
        )
    return dict(state)


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], path: Path, *, head: tuple[str, ...]
) -> None:
    """Load a state dict into a backbone, leaving out the ImageNet head."""
    cleaned = {
        name.removeprefix("module.").removeprefix("backbone."): v for name, v in state.items()
    }
    wanted = module.state_dict()
    missing = [n for n in wanted if n not in cleaned and not n.endswith("num_batches_tracked")]
    extra = [name for name in cleaned if name not in wanted and not name.startswith(head)]
    wrong = [n for n in wanted if n in cleaned and cleaned[n].shape != wanted[n].shape]
    if missing or wrong or extra:
        parts = [("missing", missing), ("of another shape", wrong), ("not known", extra)]
        found = "; ".join(f"{len(n)} {what} (first: {n[0]})" for what, n in parts if n)
        raise ModelError(
            f"{path}: these weights do not fit the backbone: {found}; "
            "choose the backbone that they were trained with"
        )
    module.load_state_dict({n: v for n, v in cleaned.items() if n in wanted}, strict=False)


def start_from_file(path: Path) -> StartWeights:
    """Origin and licence of a weights file, as its own metadata states them."""
    metadata = read_metadata(path)
    source = metadata.get("source")
    origin = f"{path.name} ({source})" if source else path.name
    stated = metadata.get("license") or metadata.get("licence")
    return StartWeights(origin, stated or (f"as stated by: {source}" if source else "not stated"))


def read_metadata(path: Path) -> dict[str, str]:
    """Text metadata of a safetensors file; empty for other files."""
    _check_file(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give a .safetensors or .pth file")


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"{path}: not a readable weights file ({reason}); it must be a whole .safetensors or a "
        ".pth that torch.load(weights_only=True) accepts"
    )
