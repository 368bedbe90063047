"""A small real encoder, and pictures for it; a module of its own, so that processes find it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hashlens import HashIndex, ImageError, pack_bits
from hashlens.files import file_state
from hashlens.types import Codes, EncodedBatch, Features, ImageInput, Skipped

SIDE = 6


class PixelEncoder:
    """Features are an image's pixels at 6 x 6 grey; bits are signs of random projections."""

    feature_dim = SIDE * SIDE

    def __init__(self, bits: int = 48, seed: int = 0) -> None:
        self.bits = bits
        self.fingerprint = f"{seed:02x}{bits:04x}" * 8
        self.encoded = 0
        self._planes = np.random.default_rng(seed).standard_normal((self.feature_dim, bits))

    def encode(self, images: Sequence[ImageInput]) -> tuple[Codes, Features]:
        features = np.array([self._pixels(image) for image in images], np.float32)
        features = features.reshape(-1, self.feature_dim)
        self.encoded += len(features)
        return pack_bits((features - 0.5) @ self._planes >= 0), features

    def encode_batches(
        self, images: Iterable[ImageInput], *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        held: list[tuple[int, ImageInput]] = []
        for entry in enumerate(images):
            held.append(entry)
            if len(held) == batch_size:
                yield self._batch(held, strict)
                held = []
        if held:
            yield self._batch(held, strict)

    def _batch(self, images: list[tuple[int, ImageInput]], strict: bool) -> EncodedBatch:
        good, skipped = [], []
        for position, image in images:
            try:
                self._pixels(image)
                good.append((position, image))
            except ImageError as error:
                if strict:
                    raise
                skipped.append(Skipped(position, str(image), str(error)))
        codes, features = self.encode([image for _, image in good])
        latent = ((features - 0.5) @ self._planes).astype(np.float32)
        positions = np.array([position for position, _ in good], np.int64)
        files = tuple(
            file_state(image) if isinstance(image, str | Path) else None for _, image in good
        )
        return EncodedBatch(positions, codes, features, None, tuple(skipped), files, latent)

    def _pixels(self, image: Any) -> Any:
        try:
            if isinstance(image, str | Path):
                with Image.open(image) as opened:
                    image = opened.convert("L")
            elif isinstance(image, np.ndarray):
                image = Image.fromarray(image).convert("L")
            small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        except OSError as error:
            raise ImageError(f"{image}: cannot be read ({error})") from error
        return np.asarray(small, np.float32).ravel() / 255


def save_pictures(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write pictures of smooth random colours."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(folder / f"picture{i:03}.png")
        Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def add_codes(index: HashIndex, count: int, **columns: Any) -> None:
    """Add codes and features of the encoder's widths, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (count, 6), dtype=np.uint8)
    index.add_encoded(codes, rng.random((count, 36)), [f"u{i}" for i in range(count)], **columns)
