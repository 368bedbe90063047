"""The folder of a run: made and checked at the start, its state, a whole model at the end."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hashlens.data.labels import class_counts
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, ModelError, writing_model
from hashlens.files import remove_abandoned, replace_file
from hashlens.machine import versions
from hashlens.models.backbones import Backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.description import CARD_NAME, CONFIG_NAME, ModelConfig, model_card
from hashlens.models.latent import LatentHashNet
from hashlens.training.config import TrainingConfig
from hashlens.types import Skipped

RUN, BEST, LAST = "run", "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run."""

    out: Path  # the model's folder
    config: TrainingConfig  # what decided the run
    training_images: int  # sizes of the split
    skipped: tuple[Skipped, ...]  # images that could not be read
    warnings: tuple[str, ...]  # notes on the images, and signs that the training did not work
    seconds: float  # time from decoding to the saved model, of this process
    # the chosen ``feature_scaling`` and ``mode``, and the figures that they were chosen by
    search: Mapping[str, Any]
    validation_images: int = 0
    best_epoch: int = 0  # whose weights were kept, chosen by what ``chosen_by`` says; 0 of ITQ
    history: tuple[dict[str, Any], ...] = ()  # scores of each epoch
    chosen_by: str = ""
    fingerprint: str = ""  # the saved model's; empty in all processes but the first, which saves it


def in_words(scores: Mapping[str, Any]) -> str:
    """Scores of an epoch; without labels there is only a loss."""
    shown = [("mAP", scores["map"]), ("accuracy", scores["accuracy"]), ("loss", scores["loss"])]
    return ", ".join(f"{name} {value:.4f}" for name, value in shown if value is not None)


def open_run(
    out: Path, source: Source, config: TrainingConfig, *, resume: bool, overwrite: bool
) -> Path | None:
    """Prepare the folder of a run."""
    run = out / RUN
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out}: expected a folder for the model, there is a file; choose another")
    if resume and run.is_dir():
        _check_same(run, source, config)
        remove_abandoned(run)
        return run / LAST if (run / LAST).is_file() else None
    if resume:
        kept_config(out)  # raises where the run is complete
    if overwrite:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(out / "logs", ignore_errors=True)
    elif run.is_dir():
        raise ModelError(f"{out}: holds an unfinished run; continue with --resume, or --overwrite")
    elif (out / CONFIG_NAME).exists():
        raise ModelError(f"{out}: holds a model; choose another --out, or add --overwrite")
    with writing_model(f"{out}:", "; choose another --out"):
        run.mkdir(parents=True)
        replace_file(run / "config.toml", config.to_toml())
        replace_file(run / "source.json", json.dumps(_identity(source)))
    return None


def kept_config(out: Path) -> TrainingConfig | None:
    """Configuration of the unfinished run in a folder; None where there is neither run nor model.

    A key that an older version did not write has its default.
    """
    path = out / RUN / "config.toml"
    if not path.is_file():
        if (out / CONFIG_NAME).exists():
            raise ModelError(
                f"{out}: this run is complete; to train on, give --from {out} and another --out"
            )
        return None
    try:
        return TrainingConfig().with_values(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, InvalidInputError) as error:
        raise ModelError(
            f"{path.parent}: cannot be resumed ({error}); start with --overwrite"
        ) from error


def save_result(
    result: TrainingResult, net: LatentHashNet, backbone: Backbone, source: Source
) -> TrainingResult:
    """Save a model with its card and configuration, and drop the state of the run."""
    config = result.config
    scores = next(e for e in result.history if e["epoch"] == result.best_epoch)
    counts = class_counts(source)
    training = {
        "source": source.spec,
        "images": {"training": result.training_images, "validation": result.validation_images},
        "images per class": dict(zip(source.classes, counts.tolist(), strict=True)),
        "skipped": len(result.skipped),
        "configuration": asdict(config),
        "epoch chosen by": result.chosen_by,
        "best epoch": result.best_epoch,
        "validation": {
            "map": scores["map"],
            "accuracy": scores["accuracy"],
            "loss": scores["loss"] if math.isfinite(scores["loss"]) else None,
            "stuck bits": int(scores["stuck_bits"]),
        },
        "search": dict(result.search),
        "seconds": round(result.seconds, 1),
        "warnings": list(result.warnings),
        "versions": versions("hashlens", "torch", "lightning", "numpy"),
    }
    result = write_model(
        result, net, backbone, training, source.classes, multi_label=source.is_multi_label
    )
    replace_file(result.out / "config.toml", config.to_toml())
    shutil.rmtree(result.out / RUN, ignore_errors=True)
    return result


def write_model(
    result: TrainingResult,
    net: LatentHashNet,
    backbone: Backbone,
    training: Mapping[str, Any],
    classes: tuple[str, ...] = (),
    *,
    multi_label: bool = False,
) -> TrainingResult:
    """Save a model and its card; ``training`` is what they say about the run."""
    saved = save_model(
        result.out,
        net,
        ModelConfig(
            bits=result.config.bits,
            feature_dim=net.feature_dim,
            classes=classes,
            backbone=backbone.name,
            preprocessing=backbone.preprocessing,
            multi_label=multi_label,
            start_origin=backbone.start.origin,
            start_licence=backbone.start.licence,
            feature_scaling=result.search["feature_scaling"],
            mode=result.search["mode"],
            training=training,
        ),
    )
    replace_file(result.out / CARD_NAME, model_card(saved))
    return replace(result, fingerprint=saved.fingerprint)


def _check_same(run: Path, source: Source, config: TrainingConfig) -> None:
    found = kept_config(run.parent)
    try:
        identity = json.loads((run / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{run}: cannot be resumed ({error}); start with --overwrite") from error
    if found is None:
        raise ModelError(f"{run}: cannot be resumed (no config.toml); start with --overwrite")
    kept, now = asdict(found), asdict(config)
    differing = [name for name in now if kept[name] != now[name]]
    if differing:
        values = ", ".join(f"{name} {kept[name]} (now {now[name]})" for name in differing)
        raise ModelError(
            f"{run.parent}: the unfinished run has {values}; resume with the same options, or "
            "start again with --overwrite"
        )
    given = _identity(source)
    if any(given[key] != value for key, value in identity.items() if key in given):
        raise ModelError(
            f"{run.parent}: the unfinished run had other images ({identity['images']}, now "
            f"{len(source)}) or labels; give the same source, or start again with --overwrite"
        )


def _identity(source: Source) -> dict[str, object]:
    return {
        "images": len(source),
        "classes": list(source.classes),
        "order": hashlib.blake2b(np.ascontiguousarray(source.targets).tobytes()).hexdigest(),
    }


# The state to resume from: one safetensors file with tensors and a JSON text, no pickle.
_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {})["state"]
        return json.loads(text, object_hook=partial(_unpack, tensors))
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


def _unpack(tensors: dict[str, torch.Tensor], value: dict[str, Any]) -> Any:
    """What an object of the text stands for; those inside it are unpacked already."""
    if set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if set(value) == {_PAIRS}:
        return dict(value[_PAIRS])
    return tuple(value[_TUPLE]) if set(value) == {_TUPLE} else value
