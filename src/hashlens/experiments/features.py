"""What shallow methods work on: raw pixels, GIST, or a model's F7."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError
from hashlens.experiments.gist import gist
from hashlens.experiments.score_model import encode
from hashlens.models.encoder import Encoder
from hashlens.protocols import Features

KINDS = ("pixels", "gist")


def read_features(
    kind: str, images: Source, size: int, channels: int, cache: Path, console: Console
) -> Features:
    """Features of all images, shape (n, d), float32.

    Parameters
    ----------
    kind : str
        ``pixels`` (0 to 1), ``gist`` (512), or a model (a folder or an .onnx file): its F7.
    images : Source
        Images; each must be readable.
    size, channels : int
        Of the pixels.
    cache : Path
        Folder that keeps GIST descriptors.
    console : Console
        Where progress is shown.

    Raises
    ------
    InvalidInputError
        If ``kind`` is neither, nor a path that exists.
    ImageError
        If an image cannot be read.
    """
    if kind not in KINDS:
        if not Path(kind).exists():
            raise InvalidInputError(
                f"features: expected {', '.join(KINDS)}, or a model's folder, got {kind!r}"
            )
        return encode(Encoder.load(kind), images, strict=True, progress=True).features
    with _bar(console) as bar:
        task = bar.add_task("decoding", total=len(images))
        pixels = decode_source(
            images,
            Preprocessing(size, 3 if channels == 3 else 1, *_unit(channels)),
            strict=True,
            progress=lambda done, _: bar.update(task, completed=done),
        ).pixels
        if kind == "pixels":
            return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        kept = cache / f"gist-{digest}.npy"
        if kept.is_file():
            found: NDArray[np.float32] = np.load(kept)
            return found
        task = bar.add_task("GIST", total=len(images))
        found = gist(pixels, progress=lambda count: bar.advance(task, count))
    cache.mkdir(parents=True, exist_ok=True)
    aside = kept.with_suffix(".part.npy")
    np.save(aside, found)
    aside.replace(kept)
    return found


def _unit(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.0,) * channels, (1.0,) * channels


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
