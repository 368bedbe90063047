"""Workers take as many images at once as memory allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashlens import Encoder, open_source
from hashlens.distributed.encoding import MOST_IMAGES, EncodeBatches, images_at_once

N = 20


def _batch() -> dict[str, Any]:
    uris = open_source("digits#test").uris[:N]
    return {"row": np.arange(N), "uri": np.array([*uris[:-1], "/no/such.png"], dtype=object)}


def test_less_memory_means_fewer_images_at_once(model: Path) -> None:
    encoder = Encoder.load(model, device="cpu")
    side, channels = encoder.preprocessing.size, encoder.preprocessing.channels
    assert images_at_once(encoder, 1) == 1
    assert images_at_once(encoder, 2**40) == MOST_IMAGES
    few = images_at_once(encoder, 40 * 8 * side * side * channels)
    assert 1 <= few <= 32


def test_a_worker_whose_memory_is_short_goes_on_with_fewer_images(model: Path) -> None:
    import torch

    worker = EncodeBatches(str(model), "cpu", 2**30, batch_size=16)
    whole = worker(_batch())
    assert whole["reason"][:-1].tolist() == [""] * (N - 1)
    assert "no such file" in whole["reason"][-1]

    run, sizes = worker._encoder._runner.run, []

    class Small:
        def run(self, images: Any) -> Any:
            sizes.append(len(images))
            if len(images) > 4:
                raise torch.OutOfMemoryError("no memory")
            return run(images)

    worker._encoder._runner = Small()
    again = worker(_batch())
    assert max(sizes) == 16
    assert sizes[-1] <= 4
    np.testing.assert_array_equal(again["row"], whole["row"])
    np.testing.assert_allclose(again["features"], whole["features"], rtol=1e-4, atol=1e-5)


def test_an_error_that_is_not_about_memory_is_raised(model: Path) -> None:
    worker = EncodeBatches(str(model), "cpu", 2**30, batch_size=16)

    class Broken:
        def run(self, images: Any) -> Any:
            raise RuntimeError("shapes do not fit")

    worker._encoder._runner = Broken()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        worker(_batch())
