"""Lightning's trainer: its callbacks, quiet logging, and a clean stop after Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console

from hashlens.machine import has_cuda
from hashlens.report.progress import ProgressBar, say
from hashlens.training.config import TrainingConfig
from hashlens.training.data import TrainingBatches, ValidationBatches
from hashlens.training.module import HashModule
from hashlens.training.state import BEST, LAST, RUN, SafeCheckpointIO, write_state

_SECONDS_PER_LINE = 2.0


class KeepStates(Callback):
    """Keeps the best weights by validation, and the last state to resume from.

    The mAP of the validation images decides, or ``by_loss`` their loss: of a few images the mAP is
    chance, as most find none of their class among the others.
    """

    def __init__(self, folder: Path, by_loss: bool) -> None:
        self._folder, self._by_loss = folder, by_loss
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"history": self.history, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the interrupted run knew."""
        self.history = list(state_dict["history"])
        self.best_epoch = state_dict["best_epoch"]

    @property
    def best(self) -> dict[str, float] | None:
        """Scores of the best epoch; None before the first."""
        return next((one for one in self.history if one["epoch"] == self.best_epoch), None)

    def _score(self, scores: dict[str, float]) -> float:
        if not self._by_loss:
            return scores["map"]
        return -scores["loss"] if math.isfinite(scores["loss"]) else -math.inf

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Keep both states."""
        scores, loss = module.scores, module.end_epoch()
        if scores is None:
            return
        epoch = trainer.current_epoch + 1
        latest = {"epoch": epoch, "train_loss": loss, **scores._asdict()}
        best = self.best
        self.history.append(latest)
        if best is None or self._score(latest) > self._score(best):
            self.best_epoch = epoch
            if trainer.is_global_zero:
                write_state(module.judged.state_dict(), self._folder / BEST)
        trainer.save_checkpoint(self._folder / LAST)


class Detectors(Callback):
    """Warns once if the loss stays at chance, and at the end if bits are stuck."""

    def __init__(self, states: KeepStates, chance: float, console: Console) -> None:
        self._states, self._chance, self._console = states, chance, console
        self.warnings: list[str] = []

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Check the epochs of the run that is resumed."""
        for epoch in self._states.history:
            self._check(trainer, epoch)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Check the epoch's loss."""
        self._check(trainer, self._states.history[-1])

    def _check(self, trainer: lightning.Trainer, latest: dict[str, float]) -> None:
        epochs = int(trainer.max_epochs or 1)
        warning = chance_warning(latest["train_loss"], self._chance, int(latest["epoch"]), epochs)
        if warning and not self.warnings:
            self._warn(trainer, warning)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Check the bits of the best epoch."""
        best = self._states.best
        if best and (warning := stuck_warning(int(best["stuck_bits"]), module.config.bits)):
            self._warn(trainer, warning)

    def _warn(self, trainer: lightning.Trainer, warning: str) -> None:
        self.warnings.append(warning)
        if trainer.is_global_zero:
            say(self._console, f"warning: {warning}", "yellow")


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
        "information: "
        "try --latent-normalisation if it is off, --objective ssdh (it balances bits), "
        "fewer --bits, or more --epochs"
    )


class ShowProgress(Callback):
    """A bar over the whole run, with images per second and time left, and a line per epoch."""

    def __init__(self, states: KeepStates, console: Console) -> None:
        self._states, self._console = states, console
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
        """Print the epoch's scores, but not more often than every two seconds."""
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
            f"mAP {latest['map']:.4f}, accuracy {latest['accuracy']:.4f}, "
            f"loss {latest['loss']:.4f}"
        )

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(
        self, trainer: lightning.Trainer, module: Any, exception: BaseException
    ) -> None:
        """Take the bar away."""
        self.on_train_end(trainer, module)


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
            strategy="auto",
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
    batches: tuple[TrainingBatches, ValidationBatches],
    state: Path | None,
    out: Path,
    console: Console,
) -> None:
    """Train; after Ctrl-C say how to continue, and raise ``KeyboardInterrupt``."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet_lightning():
            trainer.fit(module, *batches, ckpt_path=None if state is None else str(state))
    except SystemExit as stop:  # how Lightning ends after Ctrl-C
        signal.signal(signal.SIGINT, handler)
        kept = trainer.current_epoch
        say(
            console,
            f"stopped after {kept} complete epoch(s), kept in {out / RUN}; "
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
