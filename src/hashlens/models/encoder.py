"""Images to packed codes and features, with PyTorch or, for an exported file, without it.

Importing this module imports neither torch nor onnxruntime; ``Encoder.load`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes, pack_bits
from hashlens.data.decoding import iter_decoded
from hashlens.data.preprocessing import Preprocessing
from hashlens.errors import InvalidInputError, MissingExtraError, ModelError
from hashlens.models.config import ModelConfig
from hashlens.protocols import Codes, EncodedBatch, Features, ImageInput

Batch = NDArray[np.float32]


class NetworkOutput(NamedTuple):
    """What a network makes of n images, all float32.

    Attributes
    ----------
    latent : ndarray of shape (n, h)
        Layer H before the sigmoid; bit j of a code is 1 where it is at least 0.
    features : ndarray of shape (n, d)
    scores : ndarray of shape (n, classes), or None
        F8 before the softmax, where the network has a classifier.
    """

    latent: NDArray[np.float32]
    features: Features
    scores: NDArray[np.float32] | None


class Runner(Protocol):
    """Runs a network on prepared images."""

    def run(self, images: Batch) -> NetworkOutput:
        """Prepared images of shape (n, channels, size, size), n >= 1, to their outputs."""
        ...


class Encoder:
    """Turns images into codes and features (:class:`hashlens.protocols.Encoder`).

    Codes of one image are equal from run to run. In batches of another size, or with another
    runtime, sums are rounded in another order: a bit whose latent value lies within rounding of
    its threshold may then differ (fewer than one bit in a thousand).

    Parameters
    ----------
    config : ModelConfig
        The model's description.
    runner : Runner
        Runs its network.
    """

    def __init__(self, config: ModelConfig, runner: Runner) -> None:
        self.config = config
        self._runner = runner

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> Encoder:
        """Load a model directory (needs torch) or an exported ``.onnx`` file (does not).

        Parameters
        ----------
        path : str or Path
            What ``hashlens train`` or ``hashlens export`` wrote.
        device : str, optional
            PyTorch device of a model directory, such as "cpu" or "cuda"; by default a GPU where
            there is one.

        Raises
        ------
        ModelError
            If the model is missing, cut, foreign or of a newer version.
        MissingExtraError
            If a directory is given and torch is not installed.
        """
        path = Path(path)
        if path.suffix == ".onnx":
            from hashlens.models.onnx_runner import load_onnx

            return cls(*load_onnx(path))
        if path.is_file():
            raise ModelError(
                f"{path}: expected a model directory or an .onnx file; give the directory that "
                "holds model.json"
            )
        try:
            from hashlens.models.torch_runner import load_torch
        except ImportError as error:
            raise MissingExtraError(
                f"{path}: a model directory (an exported .onnx file does without)", "train"
            ) from error
        return cls(*load_torch(path, device))

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self.config.bits

    @property
    def feature_dim(self) -> int:
        """Width d of a feature vector."""
        return self.config.feature_dim

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of weights, backbone, preprocessing and bits."""
        return self.config.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classifier's outputs; empty without a classifier."""
        return self.config.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return self.config.preprocessing

    @property
    def radius(self) -> int | None:
        """Proposed Hamming radius for ``hds``, where ``hashlens inspect`` has stored one."""
        return self.config.radius

    def encode(self, images: Sequence[ImageInput]) -> tuple[Codes, Features]:
        """Encode all images, in order.

        Parameters
        ----------
        images : sequence of paths, URIs, bytes, PIL images or (H, W[, 3]) uint8 arrays
            May be empty.

        Returns
        -------
        codes : ndarray of shape (n, ceil(bits / 8)), uint8
        features : ndarray of shape (n, d), float32

        Raises
        ------
        ImageError
            If one cannot be read; the message names it.
        """
        if isinstance(images, str | bytes | Path):
            raise InvalidInputError(
                "images: expected a sequence of images, got one; write encode([image])"
            )
        batches = list(self.encode_batches(images, strict=True))
        if not batches:
            codes = np.zeros((0, code_bytes(self.bits)), np.uint8)
            return codes, np.zeros((0, self.feature_dim), np.float32)
        return (
            np.concatenate([batch.codes for batch in batches]),
            np.concatenate([batch.features for batch in batches]),
        )

    def encode_batches(
        self, images: Iterable[ImageInput], *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        """Encode a stream; threads decode the next images while the network runs.

        Parameters
        ----------
        images : iterable of images
            As in :meth:`encode`.
        batch_size : int
            Images in each run of the network.
        strict : bool
            Raise on an unreadable image instead of reporting it in ``skipped``.

        Yields
        ------
        EncodedBatch
            One for every ``batch_size`` images of the input.

        Raises
        ------
        ImageError
            If strict and an image cannot be read.
        """
        decoded = iter_decoded(images, self.preprocessing, batch_size=batch_size, strict=strict)
        for batch in decoded:
            codes, features, scores = self.encode_pixels(batch.pixels)
            yield EncodedBatch(batch.positions, codes, features, scores, tuple(batch.skipped))

    def encode_pixels(
        self, pixels: NDArray[np.uint8]
    ) -> tuple[Codes, Features, NDArray[np.float32] | None]:
        """Encode images that ``preprocessing.pixels`` has made, as one batch.

        Parameters
        ----------
        pixels : ndarray of shape (n, size, size, channels), uint8
            May be empty.

        Returns
        -------
        codes : ndarray of shape (n, ceil(bits / 8)), uint8
        features : ndarray of shape (n, d), float32
        scores : ndarray of shape (n, classes), float32, or None
        """
        if len(pixels) == 0:
            classes = len(self.classes)
            return (
                np.zeros((0, code_bytes(self.bits)), np.uint8),
                np.zeros((0, self.feature_dim), np.float32),
                np.zeros((0, classes), np.float32) if classes else None,
            )
        return self.encode_prepared(self.preprocessing.normalise(pixels))

    def encode_prepared(self, images: Batch) -> tuple[Codes, Features, NDArray[np.float32] | None]:
        """Encode the network's own input, as one batch.

        Parameters
        ----------
        images : ndarray of shape (n, channels, size, size), float32
            From ``preprocessing.normalise``; n >= 1.

        Returns
        -------
        codes, features, scores
            As from :meth:`encode_pixels`.
        """
        out = self._runner.run(images)
        return pack_bits(out.latent >= 0), out.features, out.scores
