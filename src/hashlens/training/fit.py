"""Train a model: from a source and options to a model's folder, by Lightning's trainer."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from hashlens.data.labels import balanced_weights, without_lost_classes
from hashlens.data.opening import open_source
from hashlens.data.preprocessing import VectorInput
from hashlens.data.source import Source
from hashlens.machine import has_cuda, keep_freed_memory
from hashlens.models.backbones import Backbone, StartWeights, create_backbone
from hashlens.models.checkpoint import load_model
from hashlens.models.description import ModelConfig
from hashlens.models.export import write_twin
from hashlens.models.latent import LatentHashNet
from hashlens.report.progress import ProgressBar, say
from hashlens.training.choice import choose_search
from hashlens.training.config import TrainingConfig
from hashlens.training.data import (
    FEATURES,
    Inputs,
    Split,
    Targets,
    TrainingBatches,
    ValidationBatches,
    decoded_inputs,
    feature_inputs,
    say_what_is_left_out,
    split_notes,
    split_rows,
)
from hashlens.training.folder import (
    BEST,
    LAST,
    RUN,
    SafeCheckpointIO,
    TrainingResult,
    in_words,
    kept_config,
    open_run,
    read_state,
    save_result,
    write_state,
)
from hashlens.training.module import HashModule, freeze_first
from hashlens.training.objectives import create_objective, objectives
from hashlens.training.recipes import configure, image_facts, named_values, taught


def train(
    source: Any,
    out: str | Path,
    bits: int | None = None,
    *,
    recipe: str = "auto",
    unsupervised: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
    devices: int | str = "auto",
    nodes: int = 1,
    **options: Any,
) -> TrainingResult:
    """Train hash codes and save the model, as ``hashlens train`` does.

    Parameters
    ----------
    source : str, Path, Source or what else ``open_source`` takes
        The images and their class labels. Images without a label are left out, unless the
        objective needs none: see docs/guides/training.md.
    out : str or Path
        The model's folder.
    bits : int, optional
        Length of a code, 8 to 4096; 48 unless the recipe says otherwise.
    recipe : str
        "auto", "small", "finetune", "paper", "vectors", or the path of a .toml file.
    unsupervised : bool
        Make codes without labels, from the features of a pre-trained backbone and ITQ. Of
        ``options`` only ``backbone``, ``weights``, ``size`` and ``seed`` are used.
    resume : bool
        Continue the unfinished run in ``out``, with its own options; options that are given must
        be the same.
    overwrite : bool
        Replace the model in ``out`` once the new one is complete.
    strict : bool
        Raise at an unreadable image instead of leaving it out.
    progress : bool
        Print choices, progress and warnings on standard error.
    devices : int or "auto"
        Processes on this host, each with a device of its own or a share of the processor.
    nodes : int
        Hosts.
    **options
        Fields of ``TrainingConfig``, such as ``epochs`` or ``backbone``; they win over the recipe.
        docs/reference/training.md lists them all.

    Returns
    -------
    TrainingResult
        Where the model is, its fingerprint, the scores of each epoch, and what was left out.

    Raises
    ------
    InvalidInputError
        If an option is not known or has a value that is not allowed.
    SourceError
        If the source cannot be trained on.
    ModelError
        If ``out`` cannot be used, or the backbone cannot be made.
    KeyboardInterrupt
        After Ctrl-C; the state of the last complete epoch is kept.

    Examples
    --------
    >>> result = train("photos/", "model/", bits=48, epochs=5)  # doctest: +SKIP
    >>> result.best_epoch  # doctest: +SKIP
    5
    """
    source = source if isinstance(source, Source) else open_source(source)
    out = Path(out)
    values = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in {"bits": bits, **options}.items()
        if value is not None
    }
    shared: dict[str, Any] = {"overwrite": overwrite, "strict": strict, "progress": progress}
    if unsupervised:
        from hashlens.training.unsupervised import train_unsupervised

        return train_unsupervised(source, out, values, **shared)
    kept = kept_config(out) if resume else None
    if kept is None:
        config, reasons = configure(recipe, values, source)
    else:
        config, reasons = kept.with_values({**named_values(recipe), **values}), []
    console = _console(progress)
    for reason in reasons:
        say(console, reason)
    return fit(source, config, out, resume=resume, devices=devices, nodes=nodes, **shared)


_IMAGES_PER_CLASS = 5  # validation images, on average, from which on their mAP says something


def is_first_process() -> bool:
    """Whether this process is the one, of all that train together, that prints and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "NODE_RANK"))


def fit(
    source: Source,
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
    devices: int | str = "auto",
    nodes: int = 1,
    features: Path | None = None,
) -> TrainingResult:
    """Train with a resolved configuration; otherwise as :func:`train`.

    ``features`` names a file that keeps the features of a frozen backbone for the next run of the
    same images, backbone and seed; without it they are kept for this run alone.
    """
    started = time.monotonic()
    source = taught(source, config)
    keep_freed_memory()
    first = is_first_process()
    console = _console(progress)
    # The same weights at the start in every process and every repetition.
    torch.manual_seed(config.seed)
    start = load_model(Path(config.start)) if config.start else None
    backbone = _backbone(config, source, start)
    taken = backbone.preprocessing
    state = None
    if first:
        state = open_run(out, source, config, resume=resume, overwrite=overwrite)
    elif resume and (out / RUN / LAST).is_file():
        state = out / RUN / LAST
    if config.freeze_backbone or isinstance(taken, VectorInput):
        inputs = feature_inputs(
            source,
            taken,
            backbone.module,
            features or out / RUN / FEATURES,
            strict=strict,
            console=console,
            write=first,
        )
    else:
        inputs = decoded_inputs(source, taken, strict=strict, console=console)
    given = source
    source, lost = without_lost_classes(source, inputs.rows)
    source = taught(source, config)  # so many may be unreadable that one class is left
    targets = source.targets[inputs.rows]
    split = split_rows(source.labels[inputs.rows], inputs.twins, config)
    notes = split_notes(given, inputs, split, lost, config.bits)
    say_what_is_left_out(console, inputs.skipped, notes)
    module = _module(config, backbone, source.classes, start)
    few = len(split.validation) < _IMAGES_PER_CLASS * len(source.classes)
    chosen_by, score = "highest mAP of the validation codes among themselves", lambda e: e["map"]
    if few or not source.classes:
        chosen_by, score = "lowest loss of the validation images", _low_loss
        if objectives()[config.objective].moves_target:
            chosen_by, score = "its number, the last", lambda e: e["epoch"]
        why = "these validation images are too few to search in" if few else "there are no labels"
        say(console, f"epoch chosen by {chosen_by}, as {why}")
    states = KeepStates(out / RUN, score)
    known = targets[split.training]
    chance = chance_loss(known, config.balanced) if source.classes else math.inf
    shown = ShowProgress(states, chance, console)
    trainer = make_trainer(config, out, [states, shown], devices, nodes)
    run_trainer(trainer, module, inputs, targets, split, state, out / RUN, console)
    search: dict[str, Any] = {}
    if first:  # the others must not read the state of the run, which the first one drops
        module.net.load_state_dict(read_state(out / RUN / BEST))
        search = choose_search(module, inputs, targets, split, console)
    result = TrainingResult(
        out=out,
        config=config,
        best_epoch=states.best_epoch,
        history=tuple(states.history),
        training_images=len(split.training),
        validation_images=len(split.validation),
        skipped=tuple(inputs.skipped),
        warnings=(*notes, *shown.warnings),
        search=search,
        chosen_by=chosen_by,
        seconds=time.monotonic() - started,
    )
    if not first:
        return result
    result = save_result(result, module.net, backbone, source.subset(inputs.rows))
    say(console, write_twin(out, source))
    return result


def _console(progress: bool) -> Console:
    return Console(stderr=True, quiet=not progress or not is_first_process())


def _backbone(
    config: TrainingConfig, source: Source, start: tuple[LatentHashNet, ModelConfig] | None
) -> Backbone:
    """That of the model to start from, with its weights, or the one of the configuration."""
    if start is not None:
        net, described = start
        width = (net.feature_layer or net.latent).in_features
        origin = StartWeights(f"model {described.fingerprint[:12]}", described.start_licence)
        return Backbone(described.backbone, net.backbone, width, described.preprocessing, origin)
    assert config.backbone is not None  # a resolved configuration names one
    return create_backbone(
        config.backbone,
        channels=image_facts(source).channels,
        size=config.size,
        weights=Path(config.weights) if config.weights else None,
        pretrained=bool(config.pretrained) and config.weights is None,
    )


def take_over(
    net: LatentHashNet, start: LatentHashNet, known: Sequence[str], classes: Sequence[str]
) -> None:
    """Copy the layers above the backbone; of F8 the rows of classes that both know, by name."""
    for layer, old in ((net.feature_layer, start.feature_layer), (net.latent, start.latent)):
        if layer is not None and old is not None:
            layer.load_state_dict(old.state_dict())
    for new, old in (
        (net.classifier, start.classifier),
        (net.feature_classifier, start.feature_classifier),
    ):
        if new is not None and old is not None:
            rows = [row for row, name in enumerate(classes) if name in known]
            same = [known.index(classes[row]) for row in rows]
            with torch.no_grad():
                new.weight[rows], new.bias[rows] = old.weight[same], old.bias[same]


def _module(
    config: TrainingConfig,
    backbone: Backbone,
    names: Sequence[str],
    start: tuple[LatentHashNet, ModelConfig] | None,
) -> HashModule:
    classes = len(names)
    torch.manual_seed(config.seed)
    net = LatentHashNet(
        backbone.module,
        feature_dim=backbone.feature_dim,
        bits=config.bits,
        classes=classes,
        latent_normalisation=config.latent_normalisation,
        latent_dropout=config.latent_dropout,
        feature_layer=config.feature_layer or 0,
        plain=config.objective == "softmax",
    )
    if config.latent_std and net.latent.weight.requires_grad:
        nn.init.normal_(net.latent.weight, std=config.latent_std)
        nn.init.constant_(net.latent.bias, config.latent_bias)
    if start is not None:
        take_over(net, start[0], start[1].classes, names)
    freeze_first(net.backbone, 1.0 if config.freeze_backbone else config.frozen_share)
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


_SECONDS_PER_LINE = 2.0


def _low_loss(scores: dict[str, Any]) -> float:
    return -scores["loss"] if math.isfinite(scores["loss"]) else -math.inf


class KeepStates(Callback):
    """Keeps the weights of the highest ``score`` of an epoch, and the last state to resume from.

    The mAP of the validation images decides, or their loss: of a few images the mAP is chance, as
    most find none of their class among the others, and without labels there is none.
    """

    def __init__(self, folder: Path, score: Callable[[dict[str, Any]], float]) -> None:
        self._folder, self._score = folder, score
        self.history: list[dict[str, Any]] = []
        self.best_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"history": self.history, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the interrupted run knew."""
        self.history = list(state_dict["history"])
        self.best_epoch = state_dict["best_epoch"]

    @property
    def best(self) -> dict[str, Any] | None:
        """Scores of the best epoch; None before the first."""
        return next((one for one in self.history if one["epoch"] == self.best_epoch), None)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Keep both states."""
        epoch, loss = trainer.current_epoch + 1, trainer.callback_metrics["classification_loss"]
        latest = {"epoch": epoch, "train_loss": float(loss), **module.scores._asdict()}
        best = self.best
        self.history.append(latest)
        if best is None or self._score(latest) > self._score(best):
            self.best_epoch = epoch
            if trainer.is_global_zero:
                write_state(module.judged.state_dict(), self._folder / BEST)
        trainer.save_checkpoint(self._folder / LAST)


def chance_loss(targets: NDArray[np.int64] | NDArray[np.bool_], balanced: bool = False) -> float:
    """Loss of the best constant prediction, where a run that learns nothing ends."""
    if targets.ndim == 1:
        counts = np.bincount(targets).astype(np.float64)
        shares = counts[counts > 0] / counts.sum()
        return math.log(len(shares)) if balanced else float(-(shares * np.log(shares)).sum())
    rates = np.clip(targets.mean(axis=0, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)).mean())


def chance_warning(loss: float, chance: float, epoch: int, epochs: int) -> str | None:
    """A warning if a loss has not left chance."""
    if epoch < min(max(3, epochs // 10), epochs) or (math.isfinite(loss) and loss < 0.97 * chance):
        return None
    if not loss <= 3 * chance:  # or not a number
        return (
            f"the loss is {loss:.4g} after {epoch} epoch(s), and {chance:.3f} by chance: the rate "
            "is too high; try a tenth of --learning-rate, or --precision fp32"
        )
    return (
        f"the loss {loss:.3f} is still at chance ({chance:.3f}) after {epoch} epoch(s): nothing is "
        "learned yet; try another --learning-rate (three times higher, then a third), "
        "--latent-normalisation if it is off, --recipe auto, and check the labels"
    )


def stuck_warning(stuck_bits: int, bits: int) -> str | None:
    """A warning if bits are the same for every validation image."""
    if stuck_bits == 0:
        return None
    return (
        f"{stuck_bits} of {bits} bits are the same for every validation image and carry no "
        "information: try --latent-normalisation if it is off, --objective ssdh (it balances "
        "bits), fewer --bits, or more --epochs"
    )


class ShowProgress(Callback):
    """A bar over the whole run, with images per second and time left, and a line per epoch.

    It warns once if the loss stays at chance, and at the end if bits are stuck.
    """

    def __init__(self, states: KeepStates, chance: float, console: Console) -> None:
        self._states, self._chance, self._console = states, chance, console
        self.warnings: list[str] = []
        self._bar: ProgressBar | None = None
        self._printed = -math.inf

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw the bar, part of it filled where the run is resumed."""
        if not trainer.is_global_zero:
            return
        steps, epochs = int(trainer.num_training_batches), int(trainer.max_epochs or 1)
        self._bar = ProgressBar(
            "training",
            steps * epochs,
            done=steps * trainer.current_epoch,
            unit="images",
            console=self._console,
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.per_step = len(batch.rows) * trainer.world_size
            self._bar()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Print the epoch's scores, but not more often than every two seconds.

        Losses are checked, those before a run was resumed too.
        """
        for one in self._states.history:
            epoch, epochs = int(one["epoch"]), int(trainer.max_epochs or 1)
            warning = chance_warning(one["train_loss"], self._chance, epoch, epochs)
            if warning and not self.warnings:
                self._warn(trainer, warning)
        if self._bar is None:
            return
        latest = self._states.history[-1]
        self._bar.rename(f"epoch {latest['epoch']}/{trainer.max_epochs}")
        now = time.monotonic()
        if now - self._printed < _SECONDS_PER_LINE and latest["epoch"] != trainer.max_epochs:
            return
        self._printed = now
        self._bar.say(
            f"epoch {latest['epoch']}: training loss {latest['train_loss']:.4f}, validation "
            f"{in_words(latest)}"
        )

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Check the bits of the best epoch."""
        best = self._states.best
        if best and (warning := stuck_warning(int(best["stuck_bits"]), module.config.bits)):
            self._warn(trainer, warning)
        self.on_exception()

    def on_exception(self, *_: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _warn(self, trainer: lightning.Trainer, warning: str) -> None:
        self.warnings.append(warning)
        if trainer.is_global_zero:
            say(self._console, f"warning: {warning}", "yellow")


def make_trainer(
    config: TrainingConfig, out: Path, callbacks: list[Any], devices: int | str, nodes: int
) -> lightning.Trainer:
    """A trainer over these devices and hosts, which logs into ``out``."""
    if devices == "auto" and not has_cuda():
        devices = 1
    logs: list[Any] = [CSVLogger(out / "logs", name="csv")]
    if find_spec("tensorboard") is not None:
        logs.append(TensorBoardLogger(out / "logs", name="tensorboard"))
    with _quiet_lightning():
        return lightning.Trainer(
            max_epochs=config.epochs,
            accelerator="gpu" if has_cuda() else "cpu",
            devices=devices,
            num_nodes=nodes,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=logs,
            plugins=[SafeCheckpointIO()],
            log_every_n_steps=20,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def run_trainer(
    trainer: lightning.Trainer,
    module: HashModule,
    inputs: Inputs,
    targets: Targets,
    split: Split,
    state: Path | None,
    run: Path,
    console: Console,
) -> None:
    """Train; after Ctrl-C say how to continue, and raise ``KeyboardInterrupt``."""
    config = module.config
    assert config.batch_size is not None  # a resolved configuration names one
    shared: dict[str, Any] = {"rank": trainer.global_rank, "world": trainer.world_size}
    training = TrainingBatches(
        inputs.pixels,
        targets,
        split.training,
        batch_size=config.batch_size,
        seed=config.seed,
        epoch=lambda: int(trainer.current_epoch),
        weights=balanced_weights(targets[split.training]) if config.balanced else None,
        **shared,
    )
    size = 2 * config.batch_size
    validation = ValidationBatches(
        inputs.pixels, targets, split.validation, batch_size=size, **shared
    )
    handler = signal.getsignal(signal.SIGINT)
    begin = None if state is None else str(state)
    try:
        with _quiet_lightning():
            trainer.fit(module, training, validation, ckpt_path=begin)
    except SystemExit as stop:  # how Lightning ends after Ctrl-C
        signal.signal(signal.SIGINT, handler)
        kept = trainer.current_epoch
        say(
            console,
            f"stopped after {kept} complete epoch(s), kept in {run}; "
            "to continue, repeat the command with --resume",
        )
        raise KeyboardInterrupt from stop


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
