"""Runs an exported model with ONNX Runtime; torch is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hashlens.errors import ModelError
from hashlens.models.config import ModelConfig, parse_config
from hashlens.models.encoder import Batch, NetworkOutput

METADATA_KEY = "hashlens"
INPUT = "images"
OUTPUTS = ("latent", "features", "scores")


class OnnxRunner:
    """Runs an ONNX Runtime session.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With input ``images`` and outputs ``latent``, ``features`` and, with a classifier,
        ``scores``.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        held = {output.name for output in session.get_outputs()}
        self._outputs = [name for name in OUTPUTS if name in held]

    def run(self, images: Batch) -> NetworkOutput:
        """Prepared images of shape (n, channels, size, size) to their outputs."""
        values = dict(
            zip(self._outputs, self._session.run(self._outputs, {INPUT: images}), strict=True)
        )
        return NetworkOutput(values["latent"], values["features"], values.get("scores"))


def load_onnx(path: Path) -> tuple[ModelConfig, OnnxRunner]:
    """Load a file that ``hashlens export`` wrote.

    Raises
    ------
    ModelError
        If it is missing, cut, not from Hashlens, or of a newer version.
    """
    if not path.is_file():
        raise ModelError(f"no file at {path}; make one with hashlens export MODEL --onnx {path}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors come as exceptions; warnings are for exporters
    try:
        session = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise ModelError(
            f"{path}: ONNX Runtime cannot read it ({str(error).splitlines()[0][:200]}); the file "
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


def _check_graph(session: Any, config: ModelConfig, path: Path) -> None:
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    preprocessing = config.preprocessing
    expected = [preprocessing.channels, preprocessing.size, preprocessing.size]
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
