"""Train a model: from a source and a configuration to a model's folder."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console

from hashlens.data.labels import balanced_weights, require_labels
from hashlens.data.source import Source
from hashlens.data.splits import split_validation
from hashlens.errors import SourceError
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.config import ModelConfig
from hashlens.models.latent import LatentHashNet
from hashlens.protocols import Skipped
from hashlens.training.batches import TrainingBatches, ValidationBatches
from hashlens.training.callbacks import Detectors, KeepStates, ShowProgress, load_best
from hashlens.training.config import TrainingConfig
from hashlens.training.inputs import FEATURES, Inputs, decoded_inputs, feature_inputs
from hashlens.training.module import HashModule
from hashlens.training.objectives import create_objective
from hashlens.training.recipes import ImageFacts, describe, hardware
from hashlens.training.run import RUN, close_run, open_run
from hashlens.training.scores import chance_loss
from hashlens.training.state import SafeCheckpointIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBES = 24


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Attributes
    ----------
    out : Path
        The model's folder.
    fingerprint : str
        The model's.
    best_epoch : int
        Epoch whose weights were kept: the one of the highest validation mAP.
    history : tuple of dict
        Scores of each epoch.
    training_images, validation_images : int
        Sizes of the split.
    skipped : tuple of Skipped
        Images that could not be read.
    warnings : tuple of str
        What the user was warned of.
    seconds : float
        Time from decoding to the saved model, of this process.
    """

    out: Path
    fingerprint: str
    best_epoch: int
    history: tuple[dict[str, float], ...]
    training_images: int
    validation_images: int
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    seconds: float


def image_facts(source: Source) -> ImageFacts:
    """Measure what the choice of a recipe depends on, from a few images.

    Parameters
    ----------
    source : Source
        What will be trained on.

    Raises
    ------
    SourceError
        If the source cannot be trained on, or none of the probed images can be read.
    """
    require_labels(source)
    rows = source.labelled
    probes = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBES)).astype(int)]
    sides, grey, failed = [], True, ""
    for row in probes.tolist():
        try:
            image = source.load(row)
        except SourceError as error:
            failed = str(error)
            continue
        sides.append(max(image.size))
        grey = grey and image.mode == "L"
    if not sides:
        raise SourceError(
            f"{source.spec}: none of {len(probes)} images tried can be read: {failed}"
        )
    cuda, bf16 = hardware()
    return ImageFacts(len(rows), int(np.median(sides)), 1 if grey else 3, cuda, bf16)


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
    console = Console(stderr=True, quiet=not progress)
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("RANK", "0")) == 0
    # The same weights at the start in every process and every repetition.
    torch.manual_seed(config.seed)
    backbone = _backbone(config, channels or image_facts(source).channels)
    state = None
    if first:
        state = open_run(out, source, config, resume=resume, overwrite=overwrite)
    elif resume and (out / RUN / "last.safetensors").is_file():
        state = out / RUN / "last.safetensors"
    inputs = _inputs(source, config, backbone, out / RUN, strict, console, first)
    for one in inputs.skipped:
        console.print(
            f"skipped {one.name}: {one.reason}", highlight=False, markup=False, soft_wrap=True
        )
    targets = _targets(source)[inputs.rows]
    splits = _split(source.labels[inputs.rows], inputs.twins, config)
    notes = _notes(source, inputs, splits)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    torch.manual_seed(config.seed)
    net = LatentHashNet(
        backbone.module,
        feature_dim=backbone.feature_dim,
        bits=config.bits,
        classes=len(source.classes),
        latent_normalisation=config.latent_normalisation,
    )
    if config.freeze_backbone:
        net.backbone.requires_grad_(False)
    module = _module(net, config, backbone, len(source.classes))
    states = KeepStates(out / RUN)
    chance = chance_loss(targets[splits[0]], config.balanced)
    detectors = Detectors(states, chance, console)
    trainer = _trainer(
        config, out, [states, detectors, ShowProgress(states, console)], devices, nodes
    )
    batches = _batches(inputs, targets, splits, config, trainer)
    _fit(trainer, module, batches, state, out, console)
    load_best(net, out / RUN)
    seconds = time.monotonic() - started
    result = TrainingResult(
        out=out,
        fingerprint="",
        best_epoch=states.best_epoch,
        history=tuple(states.history),
        training_images=len(splits[0]),
        validation_images=len(splits[1]),
        skipped=tuple(inputs.skipped),
        warnings=(*notes, *detectors.warnings),
        seconds=seconds,
    )
    return _save(result, net, config, backbone, source) if first else result


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
    run: Path,
    strict: bool,
    console: Console,
    first: bool,
) -> Inputs:
    if config.freeze_backbone:
        return feature_inputs(
            source,
            backbone.preprocessing,
            backbone.module,
            run / FEATURES,
            strict=strict,
            console=console,
            write=first,
        )
    return decoded_inputs(source, backbone.preprocessing, strict=strict, console=console)


def _targets(source: Source) -> NDArray[np.int64] | NDArray[np.bool_]:
    return source.labels if source.label_matrix is None else source.label_matrix


def _split(
    labels: NDArray[np.int64], twins: NDArray[np.int64], config: TrainingConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Training rows, validation rows, and how many copies of training images left the latter."""
    assert config.validation is not None  # a resolved configuration names a share
    training, validation = split_validation(labels, config.validation, config.seed)
    copies = (twins[validation] >= 0) & np.isin(twins[validation], twins[training])
    validation = validation[~copies]
    if len(training) < 2 or len(validation) < 2:
        raise SourceError(
            f"expected at least 2 different images for validation, got {len(validation)} of "
            f"{len(labels)}: add images, or raise the share held out (validation, now "
            f"{config.validation:g})"
        )
    return training, validation, int(copies.sum())


def _notes(
    source: Source,
    inputs: Inputs,
    splits: tuple[NDArray[np.int64], NDArray[np.int64], int],
) -> list[str]:
    notes = list(source.notes)
    unlabelled = len(source) - len(source.labelled)
    if unlabelled:
        notes.append(f"{unlabelled} of {len(source)} images have no label and are left out")
    if inputs.skipped:
        notes.append(f"{len(inputs.skipped)} images could not be read and are left out")
    if splits[2]:
        notes.append(
            f"{splits[2]} validation images are exact copies of training images: they are left "
            "out of validation, where they would flatter the model"
        )
    return notes


def _module(
    net: LatentHashNet, config: TrainingConfig, backbone: Backbone, classes: int
) -> HashModule:
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


def _trainer(
    config: TrainingConfig, out: Path, callbacks: list[Any], devices: int | str, nodes: int
) -> lightning.Trainer:
    if devices == "auto" and not torch.cuda.is_available():
        devices = 1
    with _quiet_lightning():
        return lightning.Trainer(
            max_epochs=config.epochs,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=devices,
            num_nodes=nodes,
            strategy="auto",
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=[
                CSVLogger(out / "logs", name="csv"),
                TensorBoardLogger(out / "logs", name="tensorboard"),
            ],
            plugins=[SafeCheckpointIO()],
            log_every_n_steps=20,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def _batches(
    inputs: Inputs,
    targets: NDArray[np.int64] | NDArray[np.bool_],
    splits: tuple[NDArray[np.int64], NDArray[np.int64], int],
    config: TrainingConfig,
    trainer: lightning.Trainer,
) -> tuple[TrainingBatches, ValidationBatches]:
    assert config.batch_size is not None  # a resolved configuration names one
    training, validation, _ = splits
    rank, world = trainer.global_rank, trainer.world_size
    weights = balanced_weights(targets[training]) if config.balanced else None
    return (
        TrainingBatches(
            inputs.pixels,
            targets,
            training,
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
            validation,
            batch_size=2 * config.batch_size,
            rank=rank,
            world=world,
        ),
    )


def _fit(
    trainer: lightning.Trainer,
    module: HashModule,
    batches: tuple[TrainingBatches, ValidationBatches],
    state: Path | None,
    out: Path,
    console: Console,
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet_lightning():
            trainer.fit(module, *batches, ckpt_path=None if state is None else str(state))
    except SystemExit as stop:  # how Lightning ends after Ctrl-C
        signal.signal(signal.SIGINT, handler)
        kept = trainer.current_epoch
        console.print(
            f"stopped after {kept} complete epoch(s), kept in {out / RUN}; "
            "to continue, repeat the command with --resume",
            highlight=False,
            soft_wrap=True,
        )
        raise KeyboardInterrupt from stop


def _save(
    result: TrainingResult,
    net: LatentHashNet,
    config: TrainingConfig,
    backbone: Backbone,
    source: Source,
) -> TrainingResult:
    from dataclasses import replace

    scores = next(e for e in result.history if e["epoch"] == result.best_epoch)
    counts = np.bincount(source.labels[source.labelled], minlength=len(source.classes))
    if source.label_matrix is not None:
        counts = source.label_matrix.sum(axis=0)
    training = {
        "source": source.spec,
        "images": {"training": result.training_images, "validation": result.validation_images},
        "images_per_class": dict(zip(source.classes, counts.tolist(), strict=True)),
        "skipped": len(result.skipped),
        "config": describe(config),
        "chosen_by": "highest val_map: mAP of validation codes among themselves, ties expected",
        "best_epoch": result.best_epoch,
        "validation": {
            "map": scores["map"],
            "accuracy": scores["accuracy"],
            "loss": scores["loss"],
            "stuck_bits": int(scores["stuck_bits"]),
        },
        "seconds": round(result.seconds, 1),
        "warnings": list(result.warnings),
        "versions": {name: version(name) for name in ("hashlens", "torch", "lightning", "numpy")},
    }
    saved = save_model(
        result.out,
        net,
        ModelConfig(
            bits=config.bits,
            feature_dim=backbone.feature_dim,
            classes=source.classes,
            backbone=backbone.name,
            preprocessing=backbone.preprocessing,
            multi_label=source.is_multi_label,
            start_origin=backbone.start.origin,
            start_licence=backbone.start.licence,
            training=training,
        ),
    )
    close_run(result.out, config)
    return replace(result, fingerprint=saved.fingerprint)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's banners and tips off the screen; errors still raise."""
    names = ("lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
