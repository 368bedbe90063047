"""What a run comes to: the model's folder, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from hashlens.data.labels import class_counts
from hashlens.data.source import Source
from hashlens.models.backbones import Backbone
from hashlens.models.card import CARD_NAME, model_card
from hashlens.models.checkpoint import save_model, write_atomically
from hashlens.models.config import ModelConfig
from hashlens.models.latent import LatentHashNet
from hashlens.protocols import Skipped
from hashlens.training.config import TrainingConfig
from hashlens.training.recipes import describe
from hashlens.training.run import close_run


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


def save_result(
    result: TrainingResult,
    net: LatentHashNet,
    config: TrainingConfig,
    backbone: Backbone,
    source: Source,
) -> TrainingResult:
    """Save a model with its card and configuration, and drop the state of the run.

    Parameters
    ----------
    result : TrainingResult
        Without the fingerprint.
    net : LatentHashNet
        With the best epoch's weights.
    config : TrainingConfig
        Resolved.
    backbone : Backbone
        Where the network started from.
    source : Source
        What was trained on.

    Returns
    -------
    TrainingResult
        With the fingerprint.

    Raises
    ------
    ModelError
        If the model cannot be written; an old one stays.
    """
    scores = next(e for e in result.history if e["epoch"] == result.best_epoch)
    counts = class_counts(source)
    training = {
        "source": source.spec,
        "images": {"training": result.training_images, "validation": result.validation_images},
        "images per class": dict(zip(source.classes, counts.tolist(), strict=True)),
        "skipped": len(result.skipped),
        "configuration": describe(config),
        "epoch chosen by": "highest mAP of the validation codes among themselves",
        "best epoch": result.best_epoch,
        "validation": {
            "map": scores["map"],
            "accuracy": scores["accuracy"],
            "loss": scores["loss"] if math.isfinite(scores["loss"]) else None,
            "stuck bits": int(scores["stuck_bits"]),
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
            feature_dim=net.feature_dim,
            classes=source.classes,
            backbone=backbone.name,
            preprocessing=backbone.preprocessing,
            multi_label=source.is_multi_label,
            start_origin=backbone.start.origin,
            start_licence=backbone.start.licence,
            training=training,
        ),
    )
    write_atomically(result.out / CARD_NAME, model_card(saved).encode())
    close_run(result.out, config)
    return replace(result, fingerprint=saved.fingerprint)
