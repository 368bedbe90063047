"""Writes the golden model files of this format version: python tests/models/golden_models.py.

Run it once when ``FORMAT_VERSION`` grows, never to make a failing test pass.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hashlens.models.description import FORMAT_VERSION

FOLDER = Path(__file__).parents[1] / "data" / "models"


def golden_pictures() -> list[Image.Image]:
    """Six pictures from a formula, of the size that the model takes, so that none is resized."""
    row, column = np.mgrid[0:16, 0:16]
    planes = [
        np.stack([(row * (3 + i) + column * (c + 1) * (7 - i) + 40 * i) % 256 for c in range(3)], 2)
        for i in range(6)
    ]
    return [Image.fromarray(plane.astype(np.uint8)) for plane in planes]


def main() -> None:
    """Write a model directory, its export, and the answers expected of both."""
    import torch

    from hashlens import Encoder
    from hashlens.models.backbones import create_backbone
    from hashlens.models.checkpoint import save_model
    from hashlens.models.description import ModelConfig
    from hashlens.models.export import export_onnx
    from hashlens.models.latent import LatentHashNet
    from hashlens.training.choice import feature_statistics

    torch.manual_seed(3)
    built = create_backbone("resnet9?width=1", channels=3, size=16)
    net = LatentHashNet(
        built.module, feature_dim=built.feature_dim, bits=12, classes=3, latent_normalisation=True
    )
    encoder_input = built.preprocessing.normalise(
        np.stack([built.preprocessing.pixels(picture) for picture in golden_pictures()])
    )
    with torch.no_grad():
        for _ in range(50):
            net(torch.from_numpy(encoder_input))
        features = net.eval()(torch.from_numpy(encoder_input)).features
        net.set_feature_scaling(*feature_statistics(features, "standardised"))
    config = ModelConfig(
        bits=12,
        feature_dim=built.feature_dim,
        classes=("cat", "dog", "eel"),
        backbone=built.name,
        preprocessing=built.preprocessing,
        radius=2,
        feature_scaling="standardised",
        mode="acs",
        training={"recipe": "golden"},
    )
    model = FOLDER / f"format-{FORMAT_VERSION}"
    config = save_model(model, net, config)
    export_onnx(model, FOLDER / f"format-{FORMAT_VERSION}.onnx")
    codes, features = Encoder.load(model).encode(golden_pictures())
    answers = {
        "fingerprint": config.fingerprint,
        "codes": [code.tobytes().hex() for code in codes],
        "features": np.round(features.astype(float), 5).tolist(),
    }
    (FOLDER / f"format-{FORMAT_VERSION}.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
