"""Lightning's trainer as training uses it: quiet, stoppable, with states that hold no pickle."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from hashlens.training.batches import TrainingBatches, ValidationBatches
from hashlens.training.config import TrainingConfig
from hashlens.training.module import HashModule
from hashlens.training.run import RUN
from hashlens.training.state import SafeCheckpointIO

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_trainer(
    config: TrainingConfig, out: Path, callbacks: list[Any], devices: int | str, nodes: int
) -> lightning.Trainer:
    """A trainer over these devices and hosts, which logs into ``out``."""
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


def run_trainer(
    trainer: lightning.Trainer,
    module: HashModule,
    batches: tuple[TrainingBatches, ValidationBatches],
    state: Path | None,
    out: Path,
    console: Console,
) -> None:
    """Train; after Ctrl-C say how to go on, and raise ``KeyboardInterrupt``."""
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
