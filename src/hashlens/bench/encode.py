"""How fast images are encoded: decode, transform, forward, write, and all together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import unpack_bits
from hashlens.data.opening import can_open, load_image
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError
from hashlens.index.hash_index import HashIndex
from hashlens.machine import cores
from hashlens.models.encoder import Encoder
from hashlens.types import Codes


def measure_encoding(
    encoders: Mapping[str, Encoder],
    source: Source,
    *,
    n_images: int = 1000,
    batch_size: int = 32,
    rounds: int = 5,
    progress: Callable[[int], None] = lambda batches: None,
) -> dict[str, Any]:
    """Measure each stage of encoding, in images per second, and compare networks in turns.

    ``decode`` is from files to pictures, ``transform`` to the network's input, ``write`` from codes
    and features to an index, ``together`` from files to codes with the first model, decoding while
    the network runs. ``forward`` has each model's network alone, on the same input: the median and
    the first and last decile over all batches of all rounds, and the share of bits that equal the
    first model's; NaN where lengths differ.
    """
    first = next(iter(encoders.values()))
    preprocessing = first.preprocessing
    for name, encoder in encoders.items():
        if encoder.preprocessing != preprocessing:
            raise InvalidInputError(f"{name}: takes another input than the first model")
    drawn = np.random.default_rng(0).permutation(len(source))[:n_images]
    named, hint = [source.uris[int(row)] for row in np.sort(drawn)], preprocessing.size_hint
    with ThreadPoolExecutor(cores()) as pool:
        # Each file is read once before, so that all stages see a warm disk.
        uris = list(compress(named, pool.map(partial(can_open, size_hint=hint), named)))
        if not uris:
            raise SourceError(
                f"{source.spec}: no image can be read, so there is nothing to measure"
            )
        start = perf_counter()
        load = partial(load_image, size_hint=hint)
        pictures = list(pool.map(load, uris))
        decoded = perf_counter()
        pixels = np.stack(list(pool.map(preprocessing.pixels, pictures)))
        for batch in _batches(pixels, batch_size):
            preprocessing.normalise(batch)
        transformed = perf_counter()
    forward, codes, features = _forward(encoders, pixels, batch_size, rounds, progress)
    write = _write_seconds(first, codes, features, uris)
    start_together = perf_counter()
    for _ in first.encode_batches(uris, batch_size=batch_size):
        pass
    together = perf_counter() - start_together
    n = len(uris)
    return {
        "n_images": n,
        "batch_size": batch_size,
        "workers": cores(),
        "rounds": rounds,
        "decode": n / (decoded - start),
        "transform": n / (transformed - decoded),
        "write": n / write,
        "together": n / together,
        "forward": forward,
    }


def _batches(pixels: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def _forward(
    encoders: Mapping[str, Encoder],
    pixels: NDArray[np.uint8],
    batch_size: int,
    rounds: int,
    progress: Callable[[int], None],
) -> tuple[dict[str, dict[str, float]], Codes, NDArray[np.float32]]:
    """Speeds of the networks in turns, and the first one's codes and features."""
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    answers: dict[str, list[tuple[Codes, NDArray[np.float32]]]] = {name: [] for name in encoders}
    names = list(encoders)
    prepare = encoders[names[0]].preprocessing.normalise
    for encoder in encoders.values():
        encoder.encode_pixels(pixels[:batch_size])
    for turn in range(rounds):
        for number, batch in enumerate(_batches(pixels, batch_size)):
            images = prepare(batch)
            shift = (turn + number) % len(names)  # no model is always the first
            for name in names[shift:] + names[:shift]:
                start = perf_counter()
                codes, features, *_ = encoders[name].encode_prepared(images)
                rates[name].append(len(batch) / (perf_counter() - start))
                if turn == 0:
                    answers[name].append((codes, features))
            progress(1)
    joined = {name: np.concatenate([part[0] for part in parts]) for name, parts in answers.items()}
    reference = encoders[names[0]]
    speeds = {}
    for name in names:
        slow, middle, fast = np.quantile(rates[name], [0.1, 0.5, 0.9]).tolist()
        equal = float("nan")
        if encoders[name].bits == reference.bits:
            bits = [unpack_bits(joined[key], reference.bits) for key in (name, names[0])]
            equal = float((bits[0] == bits[1]).mean())
        speeds[name] = {
            "images_per_second": middle, "slow": slow, "fast": fast, "bits_equal": equal
        }  # fmt: skip
    return speeds, joined[names[0]], np.concatenate([part[1] for part in answers[names[0]]])


def _write_seconds(
    encoder: Encoder, codes: Codes, features: NDArray[np.float32], uris: list[str]
) -> float:
    with tempfile.TemporaryDirectory(prefix="hashlens-bench-") as folder:
        index = HashIndex.create(Path(folder) / "bench.idx", encoder)
        start = perf_counter()
        index.add_encoded(codes, features, uris)
        taken = perf_counter() - start
        index.close()
    return taken
