"""Runs a model directory with PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

from hashlens.errors import ModelError
from hashlens.models.checkpoint import load_model
from hashlens.models.config import ModelConfig
from hashlens.models.encoder import Batch, NetworkOutput
from hashlens.models.latent import LatentHashNet
from hashlens.models.memory import keep_freed_memory


class TorchRunner:
    """Runs a network in evaluation mode, float32.

    Parameters
    ----------
    net : LatentHashNet
        The network.
    device : str
        PyTorch device, such as "cpu" or "cuda".
    """

    def __init__(self, net: LatentHashNet, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._net = net.to(self._device).eval()
        self._layout = torch.contiguous_format
        if self._device.type == "cpu":
            keep_freed_memory()
            # oneDNN's convolutions are faster with the channels of a pixel side by side.
            self._layout = torch.channels_last
            self._net = self._net.to(memory_format=self._layout)

    @torch.inference_mode()
    def run(self, images: Batch) -> NetworkOutput:
        """Prepared images of shape (n, channels, size, size) to their outputs."""
        batch = torch.from_numpy(images).to(self._device, memory_format=self._layout)
        out = self._net(batch)
        scores = out.scores.float().cpu().numpy() if out.scores.shape[1] else None
        return NetworkOutput(
            out.latent.float().cpu().numpy(), out.features.float().cpu().numpy(), scores
        )


def load_torch(directory: Path, device: str | None) -> tuple[ModelConfig, TorchRunner]:
    """Load a model directory.

    Raises
    ------
    ModelError
        If the model cannot be read, or the device is not there.
    """
    net, config = load_model(directory)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return config, TorchRunner(net, device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it lacks CUDA
        raise ModelError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); use 'cpu'"
        ) from error
