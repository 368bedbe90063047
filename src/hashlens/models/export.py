"""Writes a model as ONNX, so that it answers without PyTorch; checks it before it is kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.decoding import decode_source
from hashlens.data.preprocessing import VectorInput
from hashlens.data.source import Source
from hashlens.errors import MissingExtraError, ModelError, first_line, writing_model
from hashlens.files import make_folder, replace_file
from hashlens.models.checkpoint import TorchRunner, keep_twin, load_model
from hashlens.models.description import ModelConfig, read_config
from hashlens.models.encoder import (
    INPUT,
    METADATA_KEY,
    OUTPUTS,
    NetworkInput,
    OnnxRunner,
    Runner,
    load_onnx,
    open_session,
)

if TYPE_CHECKING:
    from hashlens.models.latent import LatentHashNet

OPSET = 18
MIN_BITS_EQUAL = 0.999
MAX_FEATURE_ERROR = 1e-3
_CALIBRATION_BATCH = 32
_SLOWER = 1.25  # what may be the noise of a measurement


class ExportReport(NamedTuple):
    """What was written, and how far it is from the PyTorch model."""

    path: Path
    n_bytes: int
    fingerprint: str  # the model's own for float32; another for int8, whose codes differ
    bits_equal: float  # share of equal bits between both, on the images compared
    # largest difference of a feature over the largest feature, on the same images
    feature_error: float
    n_compared: int  # images compared: the calibration images for int8, noise images for float32


def export_onnx(
    model: Path, path: Path, *, calibration: NDArray[Any] | None = None
) -> ExportReport:
    """Export a model directory to one ONNX file with a dynamic batch.

    Outputs are ``latent`` (H before the sigmoid), ``features`` and, with a classifier,
    ``scores``. The model's description is in the file's metadata.
    """
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: an exported model's name ends in .onnx; rename it")
    net, config = load_model(model)
    data, runner, described = _exported(net, config, calibration)
    compared = _noise(config) if calibration is None else calibration
    bits_equal, feature_error = _compare(TorchRunner(net), runner, config, compared)
    if calibration is None and (
        bits_equal < MIN_BITS_EQUAL or not feature_error <= MAX_FEATURE_ERROR
    ):
        raise ModelError(
            f"{model}: the export answers differently from the model ({bits_equal:.2%} of bits "
            f"equal, features off by {feature_error:.1e}); nothing was written: please report "
            f"the backbone {config.backbone}"
        )
    with writing_model(f"{path}:", "; free space or choose another place"):
        make_folder(path.parent)
        replace_file(path, data)
    return ExportReport(
        path, len(data), described.fingerprint, bits_equal, feature_error, len(compared)
    )


def write_twin(model: Path, source: Source) -> str:
    """Keep a model as ONNX in its own folder as well, if it may stand for it; return what was done.

    It may where each bit of images of the source is equal, and ONNX Runtime is not the slower.
    """
    net, config = load_model(model)
    pixels = calibration_pixels(model, source, 2 * _CALIBRATION_BATCH + 1)
    if len(pixels) == 0:
        return "no ONNX twin: no image of the source can be read to compare with"
    torch_runner = TorchRunner(net)
    try:
        data, runner, _ = _exported(net, config)
        equal, error = _compare(torch_runner, runner, config, pixels)
        seconds = [_seconds(each, config, pixels) for each in (torch_runner, runner)]
    except (ModelError, MissingExtraError) as failure:
        return f"no ONNX twin: {failure}"
    if equal < 1 or not error <= MAX_FEATURE_ERROR:
        return f"no ONNX twin: only {equal:.2%} of its bits are equal"
    if seconds[1] > _SLOWER * seconds[0]:
        return f"no ONNX twin: it takes {seconds[1] / seconds[0]:.1f} times as long as PyTorch"
    keep_twin(model, data)
    return (
        f"ONNX twin: search, index and serve use it without a GPU (bits equal on {len(pixels)} "
        f"images, {seconds[0] / seconds[1]:.1f} times as fast); HASHLENS_RUNTIME=torch does not"
    )


def _seconds(runner: Runner, config: ModelConfig, pixels: NDArray[Any]) -> float:
    """Shortest time of three for one image and for a batch."""
    sizes = (1, _CALIBRATION_BATCH)
    images = [config.preprocessing.normalise(pixels[:size]) for size in sizes]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for batch in images:
            runner.run(batch)
        times.append(time.perf_counter() - began)
    return min(times)


def _exported(
    net: LatentHashNet, config: ModelConfig, calibration: NDArray[Any] | None = None
) -> tuple[bytes, Runner, ModelConfig]:
    """An ONNX file with its model's description in it: its bytes, what runs it, the description."""
    with tempfile.TemporaryDirectory(prefix="hashlens-export-") as folder:
        path = Path(folder) / "float32.onnx"
        _trace(net, config, path)
        if calibration is not None:
            path = _quantise(path, config, calibration)
            digest = hashlib.sha256(config.fingerprint.encode() + path.read_bytes())
            config = replace(config, fingerprint=digest.hexdigest())
        import onnx

        proto, held = onnx.load(path), config.to_dict()
        plain = {key: str(held[key]) for key in ("bits", "feature_dim", "backbone", "fingerprint")}
        whole = {METADATA_KEY: json.dumps(held, ensure_ascii=False)}
        for key, value in {**whole, **plain}.items():
            proto.metadata_props.add(key=key, value=value)
        data: bytes = proto.SerializeToString()
        path.write_bytes(data)
        return data, load_onnx(path)[1], config


def calibration_pixels(model: Path, source: Source, count: int) -> NDArray[Any]:
    """Draw images, or vectors, for int8 calibration, seeded, unreadable ones left out."""
    config, _ = read_config(model)
    taken, store = config.preprocessing, source.vectors
    drawn = np.random.default_rng(0).permutation(len(source))[:count]
    if not isinstance(taken, VectorInput):
        return decode_source(source, taken, np.sort(drawn)).pixels
    if store is None:
        raise ModelError(f"{model}: takes vectors, and {source.spec} has images; give vectors")
    vectors = store.gather(source.rows[np.sort(drawn)])
    return np.delete(vectors, list(taken.faults(vectors)), axis=0)


def _trace(net: LatentHashNet, config: ModelConfig, path: Path) -> None:
    import torch
    from torch import Tensor, nn

    class Answers(nn.Module):
        """The network with the outputs that an exported file has."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            out = self.net(images)
            answers = (out.latent, out.features, out.scores)
            return answers if config.classes else answers[:2]

    example = torch.zeros(2, *config.preprocessing.shape)
    outputs = list(OUTPUTS if config.classes else OUTPUTS[:2])
    export = partial(
        torch.onnx.export,
        Answers().eval(),
        (example,),
        str(path),
        input_names=[INPUT],
        output_names=outputs,
        opset_version=OPSET,
    )
    try:
        import onnx  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:  # the older exporter needs a hundredth of the time
                axes = {name: {0: "batch"} for name in (INPUT, *outputs)}
                export(dynamic_axes=axes, dynamo=False)
                # Another number of images than it was traced with.
                three = np.zeros((3, *config.preprocessing.shape), np.float32)
                OnnxRunner(open_session(path)).run(three)
            except Exception:  # cannot express this network, or exists no longer
                export(
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    external_data=False,
                    verbose=False,
                )
    except ImportError as error:
        raise MissingExtraError("hashlens export", "export") from error
    except Exception as error:  # the exporter raises of every kind
        raise ModelError(
            f"the backbone {config.backbone} cannot be exported to ONNX ({first_line(error)})"
        ) from error


def _quantise(source: Path, config: ModelConfig, pixels: NDArray[Any]) -> Path:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(pixels) == 0:
        raise ModelError("int8 needs calibration images, got none; 200 to 500 are enough")

    batches = _batches(config, pixels)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NetworkInput] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    prepared, quantised = source.with_name("prepared.onnx"), source.with_name("int8.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    kept = {node.name for node in graph.node if set(node.output) & {"latent", "scores"}}
    # Scaling features costs nothing, and each of its steps would lose precision in 8 bits.
    kept |= _made_from(graph, "features") - _made_from(graph, "latent")
    quantize_static(
        prepared,
        quantised,
        Reader(),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=sorted(kept),
    )
    return quantised


def _made_from(graph: Any, output: str) -> set[str]:
    """Names of the nodes that an output depends on."""
    wanted, names = {output}, set()
    for node in reversed(graph.node):  # ONNX keeps nodes in the order of their use
        if wanted & set(node.output):
            wanted |= set(node.input)
            names.add(node.name)
    return names


def _batches(config: ModelConfig, pixels: NDArray[Any]) -> Iterator[NetworkInput]:
    for start in range(0, len(pixels), _CALIBRATION_BATCH):
        yield config.preprocessing.normalise(pixels[start : start + _CALIBRATION_BATCH])


def _noise(config: ModelConfig) -> NDArray[Any]:
    """33 seeded noise images or vectors, so that batches of 32 and of 1 are both tried."""
    image, rng, count = config.preprocessing, np.random.default_rng(0), _CALIBRATION_BATCH + 1
    if isinstance(image, VectorInput):
        return rng.standard_normal((count, image.width), dtype=np.float32)
    shape = (count, image.size, image.size, image.channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _compare(
    first: Runner, second: Runner, config: ModelConfig, pixels: NDArray[Any]
) -> tuple[float, float]:
    """Share of equal bits, and largest feature difference over the largest feature."""

    def outputs(runner: Runner) -> list[NDArray[np.float32]]:
        made = [runner.run(batch) for batch in _batches(config, pixels)]
        return [np.concatenate([getattr(one, name) for one in made]) for name in OUTPUTS[:2]]

    (latent, expected), (other, got) = outputs(first), outputs(second)
    scale = float(np.abs(expected).max()) or 1.0
    bits_equal = float(np.mean((latent >= 0) == (other >= 0)))
    return bits_equal, float(np.abs(expected - got).max()) / scale
