"""From a source to what the loop reads: decoded pixels, a stream of them, or cached features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.protocols import Skipped
from hashlens.training.pixels import FeatureRows, MemoryPixels, Pixels, StreamedPixels
from hashlens.training.state import read_state, write_state

if TYPE_CHECKING:
    from torch import nn

FEATURES = "features.safetensors"
_CHUNK = 256


class Inputs(NamedTuple):
    """What the loop reads.

    Attributes
    ----------
    pixels : Pixels
        Images, or features, by row.
    rows : ndarray of shape (n,), int64
        Where each stood in the source.
    skipped : sequence of Skipped
        Images that could not be read so far.
    twins : ndarray of shape (n,), int64
        Equal for images of equal pixels (features); -1 where this is not known.
    """

    pixels: Pixels
    rows: NDArray[np.int64]
    skipped: Sequence[Skipped]
    twins: NDArray[np.int64]


def decoded_inputs(
    source: Source, preprocessing: Preprocessing, *, strict: bool, console: Console
) -> Inputs:
    """Decode a source into memory where it fits, else prepare to stream it.

    Parameters
    ----------
    source : Source
        Its unlabelled images are left out.
    preprocessing : Preprocessing
        Decides the size.
    strict : bool
        Raise for an unreadable image.
    console : Console
        Where progress is shown.

    Raises
    ------
    SourceError
        If no image can be read.
    """
    rows = source.labelled
    needed = len(rows) * preprocessing.size**2 * preprocessing.channels
    if needed > (budget := memory_budget()):
        console.print(
            f"{len(rows)} images take {needed / 2**30:.1f} GiB decoded, more than half of the free "
            f"memory ({budget / 2**30:.1f} GiB): they are decoded anew in every epoch",
            highlight=False,
            soft_wrap=True,
        )
        streamed = StreamedPixels(source, rows, preprocessing, strict=strict)
        return Inputs(streamed, rows, streamed.skipped, np.full(len(rows), -1))
    with _bar(console, "decoding") as progress:
        task = progress.add_task("decoding", total=len(rows))
        decoded = decode_source(
            source,
            preprocessing,
            rows,
            strict=strict,
            progress=lambda done, total: progress.update(task, completed=done),
        )
    if len(decoded.positions) == 0:
        raise SourceError(f"{source.spec}: expected images, none of {len(rows)} could be read")
    twins = _twins(decoded.pixels)
    return Inputs(MemoryPixels(decoded.pixels), rows[decoded.positions], decoded.skipped, twins)


def feature_inputs(
    source: Source,
    preprocessing: Preprocessing,
    backbone: nn.Module,
    cache: Path,
    *,
    rows: NDArray[np.int64] | None = None,
    strict: bool,
    console: Console,
    write: bool = True,
) -> Inputs:
    """Compute the features of a source's images once; a cache serves a resumed run.

    Parameters
    ----------
    source : Source
        Where the images are.
    preprocessing : Preprocessing
        Mean, deviation and size of the backbone's input.
    backbone : Module
        Images (b, channels, size, size) to features (b, d); left in evaluation mode.
    cache : Path
        File that holds the features; made anew where images, backbone or size differ.
    rows : ndarray of shape (n,), int64, optional
        The source's images to take; None: the labelled ones.
    strict : bool
        Raise for an unreadable image.
    console : Console
        Where progress is shown.
    write : bool
        Whether this process writes the cache.

    Raises
    ------
    SourceError
        If no image can be read.
    """
    wanted = source.labelled if rows is None else rows
    key = _key(source, wanted, preprocessing, backbone)
    if cache.is_file() and (kept := read_state(cache))["key"] == key:
        skipped = [Skipped(*one) for one in kept["skipped"]]
        found = kept["rows"].numpy()
        return Inputs(FeatureRows(kept["features"]), found, skipped, kept["twins"].numpy())
    images = StreamedPixels(source, wanted, preprocessing, strict=strict)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = backbone.to(device).to(memory_format=torch.channels_last).eval()
    parts, readable, twins = [], [], []
    with _bar(console, "features") as progress, torch.inference_mode():
        task = progress.add_task("features", total=len(wanted))
        for start in range(0, len(wanted), _CHUNK):
            pixels, good = images.gather(np.arange(start, min(start + _CHUNK, len(wanted))))
            values = torch.from_numpy(preprocessing.normalise(pixels[good].numpy()))
            if len(values):
                values = values.to(device, memory_format=torch.channels_last)
                parts.append(backbone(values).float().cpu())
            readable.append(good)
            twins += _digests(pixels[good].numpy())
            progress.update(task, completed=start + len(pixels))
    backbone.cpu()
    if not parts:
        raise SourceError(f"{source.spec}: expected images, none of {len(wanted)} could be read")
    found = wanted[torch.cat(readable).numpy()]
    features, same = torch.cat(parts), _numbered(twins)
    if write:
        write_state(
            {
                "key": key,
                "features": features,
                "rows": torch.from_numpy(found),
                "twins": torch.from_numpy(same),
                "skipped": [tuple(one) for one in images.skipped],
            },
            cache,
        )
    return Inputs(FeatureRows(features), found, images.skipped, same)


def _key(
    source: Source, rows: NDArray[np.int64], preprocessing: Preprocessing, backbone: nn.Module
) -> str:
    """Digest of everything that decides features, but the contents of the images."""
    digest = hashlib.blake2b(repr((source.spec, preprocessing.to_dict())).encode())
    digest.update(np.ascontiguousarray(source.rows[rows]).tobytes())
    for row in rows.tolist():
        digest.update(f"{source.uris[row]}\n".encode("utf-8", "surrogateescape"))
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def memory_budget() -> int:
    """Bytes that decoded images may take: half of the free memory; 4 GiB where it is not known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 4 * 2**30
    free = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
    return int(free.split()[1]) * 1024 // 2


def _twins(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return _numbered(_digests(pixels))


def _digests(pixels: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in pixels]


def _numbered(digests: list[bytes]) -> NDArray[np.int64]:
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


def _bar(console: Console, what: str) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
