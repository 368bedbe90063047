"""A labelled folder, encoded whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hashlens import Encoder, ImageError, open_source
from hashlens.models.encoder import encode_source


@pytest.fixture
def folder(photos: Path) -> Path:
    """The photos, and one that is broken."""
    (photos / "dog" / "1a.png").write_bytes(b"broken")
    return photos


def test_rows_stay_together(model_dir: Path, folder: Path) -> None:
    encoder, source = Encoder.load(model_dir), open_source(str(folder))
    done: list[int] = []
    encoded = encode_source(encoder, source, batch_size=4, progress=done.append)
    assert sum(done) == len(source) == 10
    assert len(encoded) == 9
    (skipped,) = encoded.skipped
    assert skipped.name.endswith("1a.png")
    assert skipped.position not in encoded.positions
    for row, position in enumerate(encoded.positions):
        assert encoded.uris[row] == source.uris[position]
        assert encoder.classes[encoded.labels[row]] == Path(encoded.uris[row]).parent.name
        code, features = encoder.encode([encoded.uris[row]])
        assert (encoded.codes[row] == code[0]).all()
        np.testing.assert_allclose(encoded.features[row], features[0], rtol=1e-4, atol=1e-5)
    assert encoded.scores is not None
    assert encoded.scores.shape == (9, 3)
    assert encoded.labels.shape == (9,)


def test_strict_stops_at_the_unreadable_one(model_dir: Path, folder: Path) -> None:
    with pytest.raises(ImageError, match=r"1a\.png"):
        encode_source(Encoder.load(model_dir), open_source(str(folder)), strict=True)


def test_a_source_with_nothing_readable(model_dir: Path, folder: Path) -> None:
    source = open_source(str(folder)).subset([3, 4, 5])
    broken = [i for i, uri in enumerate(source.uris) if uri.endswith("1a.png")]
    encoded = encode_source(Encoder.load(model_dir), source.subset(broken))
    assert len(encoded) == 0
    assert encoded.codes.shape == (0, 3)
    assert encoded.features.shape == (0, 16)
    assert encoded.scores is not None
    assert encoded.scores.shape == (0, 3)
    assert len(encoded.skipped) == len(broken)
