"""Backbones, the latent layer, and the encoder that turns images into codes."""

import os

# ONNX Runtime's wheels report their use to their maker unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
