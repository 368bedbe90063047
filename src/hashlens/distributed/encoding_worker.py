"""What encodes on a cluster: Ray Data's actor, and how many images it takes at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashlens.codes.packing import code_bytes
from hashlens.distributed.locations import is_remote, read_remote
from hashlens.distributed.memory import peak_memory
from hashlens.errors import SourceError
from hashlens.models.encoder import Encoder
from hashlens.protocols import ImageInput

MOST_IMAGES = 256
_PROBE = 16


class EncodeBatches:
    """A batch of URIs to codes, features, and reasons where an image could not be read.

    Parameters
    ----------
    model : str
        Model directory or exported file.
    device : str
        "cpu" or "cuda".
    memory : int
        Bytes that this process may use for images and what the network makes of them.
    batch_size : int, optional
        Images in each run of the network; by default as many as the memory allows.
    """

    def __init__(self, model: str, device: str, memory: int, batch_size: int | None = None) -> None:
        self._encoder = Encoder.load(model, device=device)
        if batch_size is None:
            # a GPU says itself when its memory is short
            known = device == "cpu"
            batch_size = images_at_once(self._encoder, memory) if known else MOST_IMAGES
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns row and uri to row, codes, features and reason ("" if read)."""
        while True:
            try:
                return self._encode(batch)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or self._batch_size == 1:
                    raise
                self._batch_size //= 2

    def _encode(self, batch: dict[str, Any]) -> dict[str, Any]:
        n = len(batch["uri"])
        codes = np.zeros((n, code_bytes(self._encoder.bits)), np.uint8)
        features = np.zeros((n, self._encoder.feature_dim), np.float32)
        reasons = np.full(n, "", dtype=object)
        images: list[ImageInput] = []
        rows = []
        for row, uri in enumerate(batch["uri"]):
            try:
                images.append(read_remote(uri) if is_remote(uri) else uri)
                rows.append(row)
            except SourceError as error:
                reasons[row] = str(error)
        for encoded in self._encoder.encode_batches(images, batch_size=self._batch_size):
            at = np.array(rows)[encoded.positions]
            codes[at], features[at] = encoded.codes, encoded.features
            for image in encoded.skipped:
                reasons[rows[image.position]] = image.reason
        return {
            "row": batch["row"],
            "codes": codes,
            "features": features,
            "reason": reasons.astype(str),
        }


def images_at_once(encoder: Encoder, memory: int) -> int:
    """How many images the processor should take at once, a power of two.

    Parameters
    ----------
    encoder : Encoder
        Is run twice, to see how its memory grows.
    memory : int
        Bytes that may be used.
    """
    size, channels = encoder.preprocessing.size, encoder.preprocessing.channels
    pixels = np.zeros((_PROBE, size, size, channels), np.uint8)
    encoder.encode_pixels(pixels[:1])
    before = peak_memory()
    encoder.encode_pixels(pixels)
    # where nothing grew, what the network makes was hidden below an earlier peak
    an_image = max((peak_memory() - before) / (_PROBE - 1), 8 * pixels[0].nbytes)
    fitting = max(1, min(MOST_IMAGES, int(memory / an_image)))
    return 1 << (fitting.bit_length() - 1)
