"""Train a model: from a source and a configuration to a model's folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from hashlens.data.labels import balanced_weights, require_labels
from hashlens.data.source import Source
from hashlens.machine import keep_freed_memory
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.latent import LatentHashNet
from hashlens.training.config import TrainingConfig
from hashlens.training.data import (
    FEATURES,
    Inputs,
    TrainingBatches,
    ValidationBatches,
    decoded_inputs,
    feature_inputs,
)
from hashlens.training.folder import TrainingResult, open_run, save_result
from hashlens.training.module import HashModule
from hashlens.training.objectives import create_objective
from hashlens.training.scores import chance_loss
from hashlens.training.split import Split, image_facts, split_notes, split_rows
from hashlens.training.state import RUN
from hashlens.training.trainer import (
    Detectors,
    KeepStates,
    ShowProgress,
    load_best,
    make_trainer,
    run_trainer,
)

__all__ = ["TrainingResult", "image_facts", "is_first_process", "train"]

_PROBES = 24


def is_first_process() -> bool:
    """Whether this process is the one, of all that train together, that prints and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "NODE_RANK"))


def train(
    source: Source,
    config: TrainingConfig,
    out: Path,
    *,
    channels: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
    devices: int | str = "auto",
    nodes: int = 1,
    features: Path | None = None,
) -> TrainingResult:
    """Train a model and save it.

    Parameters
    ----------
    source : Source
        Labelled images; unlabelled ones are left out.
    config : TrainingConfig
        Resolved (``recipes.configure``).
    out : Path
        The model's folder.
    channels : int, optional
        1 or 3; None: by the images.
    resume : bool
        Continue an unfinished run in ``out``.
    overwrite : bool
        Replace what is in ``out``; the old model stays until the new one is complete.
    strict : bool
        Raise for an unreadable image instead of leaving it out.
    progress : bool
        Show progress on standard error.
    devices : int or "auto"
        Processes a host, each with a device of its own (or a share of the processor).
    nodes : int
        Hosts.
    features : Path, optional
        File that keeps the features of a frozen backbone for the next run of the same images,
        backbone and seed; None: kept for this run alone.

    Raises
    ------
    SourceError
        If the source cannot be trained on.
    ModelError
        If ``out`` cannot be used, or the backbone cannot be made.
    KeyboardInterrupt
        After Ctrl-C; the state of the last complete epoch is kept.
    """
    started = time.monotonic()
    require_labels(source)
    keep_freed_memory()
    console = Console(stderr=True, quiet=not progress or not is_first_process())
    first = is_first_process()
    # The same weights at the start in every process and every repetition.
    torch.manual_seed(config.seed)
    backbone = _backbone(config, channels or image_facts(source).channels)
    state = None
    if first:
        state = open_run(out, source, config, resume=resume, overwrite=overwrite)
    elif resume and (out / RUN / "last.safetensors").is_file():
        state = out / RUN / "last.safetensors"
    cache = features or out / RUN / FEATURES
    inputs = _inputs(source, config, backbone, cache, strict, console, first)
    targets = _targets(source)[inputs.rows]
    split = split_rows(source.labels[inputs.rows], inputs.twins, config)
    notes = split_notes(source, inputs, split)
    for line in (
        *(f"skipped {one.name}: {one.reason}" for one in inputs.skipped),
        *(f"note: {note}" for note in notes),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    module = _module(config, backbone, len(source.classes))
    states = KeepStates(out / RUN)
    chance = chance_loss(targets[split.training], config.balanced)
    detectors = Detectors(states, chance, console)
    callbacks = [states, detectors, ShowProgress(states, console)]
    trainer = make_trainer(config, out, callbacks, devices, nodes)
    batches = _batches(inputs, targets, split, config, trainer)
    run_trainer(trainer, module, batches, state, out, console)
    if first:  # which drops the state of the run, perhaps before the others could read it
        load_best(module.net, out / RUN)
    seconds = time.monotonic() - started
    result = TrainingResult(
        out=out,
        fingerprint="",
        best_epoch=states.best_epoch,
        history=tuple(states.history),
        training_images=len(split.training),
        validation_images=len(split.validation),
        skipped=tuple(inputs.skipped),
        warnings=(*notes, *detectors.warnings),
        seconds=seconds,
    )
    return save_result(result, module.net, config, backbone, source) if first else result


def _backbone(config: TrainingConfig, channels: int) -> Backbone:
    assert config.backbone is not None  # a resolved configuration names one
    return create_backbone(
        config.backbone,
        channels=channels,
        size=config.size,
        weights=Path(config.weights) if config.weights else None,
        pretrained=config.pretrained and config.weights is None,
    )


def _inputs(
    source: Source,
    config: TrainingConfig,
    backbone: Backbone,
    cache: Path,
    strict: bool,
    console: Console,
    first: bool,
) -> Inputs:
    if config.freeze_backbone:
        return feature_inputs(
            source,
            backbone.preprocessing,
            backbone.module,
            cache,
            strict=strict,
            console=console,
            write=first,
        )
    return decoded_inputs(source, backbone.preprocessing, strict=strict, console=console)


def _targets(source: Source) -> NDArray[np.int64] | NDArray[np.bool_]:
    return source.labels if source.label_matrix is None else source.label_matrix


def _module(config: TrainingConfig, backbone: Backbone, classes: int) -> HashModule:
    torch.manual_seed(config.seed)
    net = LatentHashNet(
        backbone.module,
        feature_dim=backbone.feature_dim,
        bits=config.bits,
        classes=classes,
        latent_normalisation=config.latent_normalisation,
        feature_layer=config.feature_layer or 0,
    )
    if config.freeze_backbone:
        net.backbone.requires_grad_(False)
    objective = create_objective(
        config.objective,
        bits=config.bits,
        classes=classes,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
    )
    net = net.to(memory_format=torch.channels_last)
    if config.compile:
        net.compile()
    return HashModule(net, objective, config, backbone.preprocessing)


def _batches(
    inputs: Inputs,
    targets: NDArray[np.int64] | NDArray[np.bool_],
    split: Split,
    config: TrainingConfig,
    trainer: lightning.Trainer,
) -> tuple[TrainingBatches, ValidationBatches]:
    assert config.batch_size is not None  # a resolved configuration names one
    rank, world = trainer.global_rank, trainer.world_size
    weights = balanced_weights(targets[split.training]) if config.balanced else None
    return (
        TrainingBatches(
            inputs.pixels,
            targets,
            split.training,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=lambda: int(trainer.current_epoch),
            weights=weights,
            rank=rank,
            world=world,
        ),
        ValidationBatches(
            inputs.pixels,
            targets,
            split.validation,
            batch_size=2 * config.batch_size,
            rank=rank,
            world=world,
        ),
    )
