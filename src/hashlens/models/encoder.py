"""Images, or vectors, to packed codes and features, with PyTorch or, if exported, without it.

Importing this module imports neither torch nor onnxruntime; ``Encoder.load`` does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import code_bytes, pack_bits
from hashlens.codes.threads import split
from hashlens.data.decoding import iter_decoded
from hashlens.data.preprocessing import Preprocessing, VectorInput
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, ModelError, first_line, needs_extra
from hashlens.machine import cores, gpu_name
from hashlens.models.description import ModelConfig, parse_config, read_config, read_twin
from hashlens.types import Codes, EncodedBatch, EncodedImages, Features, ImageInput, Skipped


class Encoder:
    """Turns images into codes and features (:class:`hashlens.types.EncoderLike`).

    A model over ready vectors takes one-dimensional arrays in the place of images, or one array
    (n, width); see :attr:`vectors`.

    Codes of one image are equal from run to run. In batches of another size, or with another
    runtime, sums are rounded in another order: a bit whose latent value is within rounding of its
    threshold may then differ (fewer than one bit in a thousand).

    Parameters
    ----------
    config : ModelConfig
        The model's description.
    runner : Runner
        Runs its network.
    folder : Path, optional
        The model's folder, from which texts are encoded.

    Attributes
    ----------
    bits, feature_dim : int
        Length of a code in bits; width d of a feature vector.
    fingerprint : str
        Hexadecimal digest of weights, backbone, preprocessing and bits.
    classes : tuple of str
        Names of the classifier's outputs; empty without a classifier.
    mode : {"hds", "acs", "bcs", "es"} or None
        The mode that found most on the validation images, where training had some.
    radius : int or None
        Proposed Hamming radius for ``hds``, where ``hashlens inspect`` has stored one.
    knows_texts : bool
        Whether the backbone has a text tower, so that words are encoded as well.
    """

    def __init__(self, config: ModelConfig, runner: Runner, folder: Path | None = None) -> None:
        self.config = config
        self.bits, self.feature_dim, self.classes = config.bits, config.feature_dim, config.classes
        self.fingerprint, self.mode, self.radius = config.fingerprint, config.mode, config.radius
        self.knows_texts = config.backbone.startswith("open_clip:")
        self._runner = runner
        self._folder = folder
        self._texts: Callable[[Sequence[str]], EncodedPixels] | None = None

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> Encoder:
        """Load a model directory, or an exported ``.onnx`` file.

        A directory that holds the network as ONNX as well, its twin, is run by ONNX Runtime
        where there is no GPU, without torch; see :attr:`runtime`.

        Parameters
        ----------
        path : str or Path
            What ``hashlens train`` or ``hashlens export`` wrote, or ``hub:OWNER/NAME``, what
            ``hashlens push`` uploaded, with ``@REVISION`` if wanted.
        device : str, optional
            PyTorch device of a model directory, such as "cpu" or "cuda", which leaves the twin
            aside, as ``HASHLENS_RUNTIME=torch`` in the environment does. By default a GPU where
            there is one, else the twin, else the processor.

        Raises
        ------
        ModelError
            If the model is missing, cut, foreign or of a newer version.
        MissingExtraError
            If a directory without a twin is given and torch is not installed.
        """
        if str(path).startswith("hub:"):
            from hashlens.models.hub import cached_model

            path = cached_model(str(path).removeprefix("hub:"))
        path = Path(path)
        if path.suffix == ".onnx":
            return cls(*load_onnx(path))
        wanted = os.environ.get("HASHLENS_RUNTIME", "")
        if wanted not in ("", "onnx", "torch"):
            raise ModelError(f"HASHLENS_RUNTIME: expected onnx or torch, got {wanted!r}")
        if device is None and wanted != "torch" and (wanted or gpu_name() is None):
            if loaded := load_twin(path):
                return cls(*loaded, path)
            if wanted:
                raise ModelError(
                    f"{path}: no ONNX twin that can be used is in this folder; train again, or "
                    "leave HASHLENS_RUNTIME out"
                )
        if path.is_file():
            raise ModelError(
                f"{path}: expected a model directory or an .onnx file; give the directory that "
                "holds model.json"
            )
        with needs_extra(
            f"{path}: a model directory (an exported .onnx file does without)", "train"
        ):
            from hashlens.models.checkpoint import load_torch
        return cls(*load_torch(path, device), path)

    @property
    def runtime(self) -> str:
        """What runs the network: "onnx" or "torch"."""
        return "onnx" if isinstance(self._runner, OnnxRunner) else "torch"

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        if isinstance(self.config.preprocessing, VectorInput):
            raise ModelError(
                f"this model takes vectors of {self.config.preprocessing.width} values, not "
                "images; give vectors, or a model that was trained on images"
            )
        return self.config.preprocessing

    @property
    def vectors(self) -> VectorInput | None:
        """What vectors the model takes; None where it takes images."""
        taken = self.config.preprocessing
        return taken if isinstance(taken, VectorInput) else None

    def encode(self, images: Sequence[ImageInput] | NDArray[Any]) -> tuple[Codes, Features]:
        """Encode all images, in order.

        Parameters
        ----------
        images : sequence of paths, URIs, bytes, PIL images or (H, W[, 3]) uint8 arrays
            May be empty. Of a model over vectors: an array (n, width) of floating numbers.

        Returns
        -------
        codes : ndarray of shape (n, ceil(bits / 8)), uint8
        features : ndarray of shape (n, d), float32

        Raises
        ------
        ImageError
            If one cannot be read; the message names it.
        InvalidInputError
            If one is not what this model takes.
        """
        if isinstance(images, str | bytes | Path):
            raise InvalidInputError(
                "images: expected a sequence of images, got one; write encode([image])"
            )
        batches = list(self.encode_batches(images, strict=True))
        return self._joined(batches, "codes"), self._joined(batches, "features")

    def encode_text(self, texts: Sequence[str]) -> EncodedPixels:
        """Encode words, such as "red shoes", to search images by.

        The text tower of the checkpoint that the backbone is from is loaded at the first call; what
        it makes of a text goes through the same layers as what the image tower makes of an image.

        Parameters
        ----------
        texts : sequence of str
            In the language of that checkpoint.

        Returns
        -------
        EncodedPixels
            ``codes``, ``features``, ``scores`` and ``latent``, a row for each text.

        Raises
        ------
        ModelError
            If the backbone has no text tower, or was trained away from it.
        MissingExtraError
            If open_clip or PyTorch is not installed.
        """
        if isinstance(texts, str) or not texts or not all(map(str.strip, texts)):
            raise InvalidInputError(f"texts: expected a list of words, got {texts!r:.80}")
        if self._folder is None or not self.knows_texts:
            raise ModelError(
                f"this model ({self.config.backbone.partition('?')[0]}) knows no texts; take the "
                "folder of one that was trained with --backbone open_clip:NAME, or a text's vector"
            )
        if self._texts is None:
            with needs_extra("searching by text", "clip"):
                from hashlens.models.backbones.open_clip import load_texts
            self._texts = load_texts(self._folder)
        return self._texts(texts)

    def _joined(self, batches: Sequence[EncodedBatch], output: str) -> Any:
        """One output of all batches; None where the model has no such output."""
        parts = [getattr(batch, output) for batch in (self._nothing(), *batches)]
        return None if parts[0] is None else np.concatenate(parts)

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
        if self.vectors is not None:
            yield from self._encode_vectors(images, self.vectors, batch_size, strict)
            return
        decoded = iter_decoded(images, self.preprocessing, batch_size=batch_size, strict=strict)
        for batch in decoded:
            found = self.encode_pixels(batch.pixels)
            yield EncodedBatch(
                batch.positions, *found[:3], batch.skipped, batch.files, found.latent
            )

    def _encode_vectors(
        self, rows: Iterable[Any], taken: VectorInput, batch_size: int, strict: bool
    ) -> Iterator[EncodedBatch]:
        coming, first = iter(rows), 0
        while part := list(islice(coming, batch_size)):
            vectors = taken.stack(part, first)
            faults = taken.faults(vectors)
            skipped = tuple(
                Skipped(first + row, f"row {first + row}", why) for row, why in faults.items()
            )
            if strict and skipped:
                raise InvalidInputError(f"{skipped[0].name}: {skipped[0].reason}; leave it out")
            good = np.array([row for row in range(len(part)) if row not in faults], np.int64)
            found = self.encode_prepared(vectors[good])
            files = (None,) * len(good)
            yield EncodedBatch(first + good, *found[:3], skipped, files, found.latent)
            first += len(part)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> EncodedPixels:
        """Encode images that ``preprocessing.pixels`` has made, as one batch."""
        return self.encode_prepared(self.preprocessing.normalise(pixels))

    def _nothing(self) -> EncodedPixels:
        """What no image at all is encoded to."""
        classes = len(self.classes)
        return EncodedPixels(
            np.zeros((0, code_bytes(self.bits)), np.uint8),
            np.zeros((0, self.feature_dim), np.float32),
            np.zeros((0, classes), np.float32) if classes else None,
            np.zeros((0, self.bits), np.float32),
        )

    def encode_prepared(self, images: NetworkInput) -> EncodedPixels:
        """Encode the network's own input, as one batch."""
        if len(images) == 0:
            return self._nothing()
        return self._runner.run(images)


def encode_source(
    encoder: Encoder,
    source: Source,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    strict: bool = False,
) -> EncodedImages:
    """Encode every readable image of a source."""
    batches = []
    for batch in encoder.encode_batches(source.inputs, batch_size=batch_size, strict=strict):
        batches.append(batch)
        if progress is not None:
            progress(len(batch.positions) + len(batch.skipped))
    positions = np.concatenate([np.zeros(0, np.int64), *(batch.positions for batch in batches)])
    return EncodedImages(
        encoder._joined(batches, "codes"),
        encoder._joined(batches, "features"),
        source.targets[positions],
        encoder._joined(batches, "scores"),
        tuple(source.uris[position] for position in positions),
        positions,
        tuple(one for batch in batches for one in batch.skipped),
        encoder._joined(batches, "latent"),
    )


NetworkInput: TypeAlias = NDArray[np.float32]
"""Prepared images of shape (n, channels, size, size), or vectors of shape (n, width)."""


class EncodedPixels(NamedTuple):
    """What a network makes of a batch of n images, or texts."""

    codes: Codes  # (n, ceil(bits / 8)): bit j is 1 where ``latent[:, j]`` is at least 0
    features: Features  # (n, d)
    # (n, classes): F8 before the softmax, where the network has a classifier
    scores: NDArray[np.float32] | None
    latent: NDArray[np.float32]  # (n, bits): layer H before the sigmoid

    @classmethod
    def of(cls, latent: Any, features: Any, scores: Any = None) -> EncodedPixels:
        """The same with codes, from a network's outputs."""
        return cls(pack_bits(latent >= 0), features, scores, latent)


class Runner(Protocol):
    """Runs a network on prepared images."""

    def run(self, images: NetworkInput) -> EncodedPixels:
        """Prepared images of shape (n, channels, size, size), n >= 1, to their outputs."""
        ...


METADATA_KEY = "hashlens"
INPUT = "images"
# In protobuf: field 1 (the key) of 8 bytes, in any way to write numbers.
_EXTERNAL_DATA = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
OUTPUTS = ("latent", "features", "scores")


# So much of the input, 4 images of 128 pixels a side, stays in a core's cache from one layer to the
# next; a whole batch does not.
_VALUES_AT_A_TIME = 3 << 16


class OnnxRunner:
    """Runs an ONNX Runtime session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        held = {output.name for output in session.get_outputs()}
        self._outputs = [name for name in OUTPUTS if name in held]

    def run(self, images: NetworkInput) -> EncodedPixels:
        """Prepared images of shape (n, channels, size, size) to their outputs."""
        pieces = split(len(images), -(-images.size // _VALUES_AT_A_TIME))

        def run_piece(piece: tuple[int, int]) -> Any:
            return self._session.run(self._outputs, {INPUT: images[slice(*piece)]})

        if len(pieces) == 1:
            joined = run_piece(pieces[0])
        else:
            # threads of its own: on those of the kernels, searches would wait for whole batches
            with ThreadPoolExecutor(min(cores(), len(pieces))) as threads:
                found = list(threads.map(run_piece, pieces))
            joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        return EncodedPixels.of(**dict(zip(self._outputs, joined, strict=True)))


def load_onnx(path: Path) -> tuple[ModelConfig, OnnxRunner]:
    """Load a file that ``hashlens export`` wrote."""
    if not path.is_file():
        raise ModelError(f"no file at {path}; make one with hashlens export MODEL --onnx {path}")
    data = path.read_bytes()  # the plain word is looked for first, as that is far quicker
    if b"location" in data and _EXTERNAL_DATA.search(data):  # it may name any file of this machine
        raise ModelError(
            f"{path}: keeps weights in other files, which are not opened; make one file of it "
            "with hashlens export"
        )
    try:
        session = open_session(path)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise ModelError(
            f"{path}: ONNX Runtime cannot read it ({first_line(error)[:200]}); the file "
            "is cut, foreign, or needs a newer onnxruntime: export it again"
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f"{path}: this ONNX file is not from Hashlens (it carries no model description); "
            "make one with hashlens export"
        )
    config, _ = parse_config(text, path)
    _check_graph(session, config, path)
    return config, OnnxRunner(session)


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors come as exceptions; warnings are for exporters
    # its threads would take the processor from others, and from each other, while they wait
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def load_twin(directory: Path) -> tuple[ModelConfig, OnnxRunner] | None:
    """Load the ONNX twin in a model's folder; None where it or the weights are not those named.

    What is told of the model, such as its radius, is its own description's, which may be newer.
    """
    twin = read_twin(directory)
    if twin is None:
        return None
    config, weights = read_config(directory)
    for path, digest in ((twin.path, twin.sha256), (weights, twin.weights_sha256)):
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return None
    described, runner = load_onnx(twin.path)
    return (config, runner) if described.fingerprint == config.fingerprint else None


def _check_graph(session: Any, config: ModelConfig, path: Path) -> None:
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    expected = list(config.preprocessing.shape)
    fits = (
        list(inputs) == [INPUT]
        and inputs[INPUT][1:] == expected
        and outputs.get("latent", [None])[-1] == config.bits
        and outputs.get("features", [None])[-1] == config.feature_dim
        and (not config.classes or outputs.get("scores", [None])[-1] == len(config.classes))
    )
    if not fits:
        raise ModelError(
            f"{path}: its graph (inputs {inputs}, outputs {outputs}) does not fit its description "
            f"({config.bits} bits, {config.feature_dim} features); export it again"
        )
