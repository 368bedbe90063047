"""Models that earlier versions wrote are still read, with the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import FOLDER, golden_pictures

from hashlens import Encoder
from hashlens.models.description import FORMAT_VERSION


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
@pytest.mark.parametrize("suffix", ["", ".onnx"])
def test_answers_of_a_written_model(version: int, suffix: str) -> None:
    base = FOLDER / f"format-{version}"
    expected = json.loads(Path(f"{base}.json").read_text())
    encoder = Encoder.load(f"{base}{suffix}")
    codes, features = encoder.encode(golden_pictures())
    assert [code.tobytes().hex() for code in codes] == expected["codes"]
    np.testing.assert_allclose(features, expected["features"], atol=1e-3)
    assert encoder.fingerprint == expected["fingerprint"]
    assert (encoder.bits, encoder.radius) == (12, 2)
    scaled = version >= 3
    assert encoder.mode == ("acs" if scaled else None)
    assert encoder.config.feature_scaling == ("standardised" if scaled else "none")
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5) == scaled
    assert encoder.classes == ("cat", "dog", "eel")
