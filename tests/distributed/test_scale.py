"""The cost model recovers constants that made its observations."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from hashlens.distributed.scale import CostModel, Observation, fit, make_shards, observe


def test_fit_recovers_the_constants() -> None:
    made_by = CostModel(3.0, 0.5, 2e-5, 1.0, 0.25)
    observations = [
        Observation(s, n, made_by.coarse(s, n, 2), made_by.fine(s))
        for s, n in product((1, 2, 4, 8), (10_000, 100_000))
    ]
    fitted = fit(observations, 2)
    assert fitted.coarse(16, 10**6, 2) == pytest.approx(made_by.coarse(16, 10**6, 2))
    assert fitted.fine(16) == pytest.approx(made_by.fine(16))


def test_shards_are_made_once_and_observed(cluster: Any, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 2, 1500)
    assert make_shards(tmp_path, 2, 1500) == shards
    seen = observe(tmp_path, shards)
    assert (seen.shards, seen.images_per_shard) == (2, 1500)
    assert seen.coarse > 0
    assert seen.fine > 0
