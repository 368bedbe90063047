"""Feature scaling and mode are chosen by the validation images, stored and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashlens import Encoder, SearchOptions
from hashlens.codes.packing import pack_bits
from hashlens.data.source import Source
from hashlens.evaluation.metrics import average_precision
from hashlens.index.ranking import ArraySearcher
from hashlens.models.checkpoint import load_model, read_config
from hashlens.models.latent import scaled_features
from hashlens.training.choice import CHEAPER_FIRST, Encoded, compare_searches, feature_statistics
from hashlens.training.fit import fit


def _encoded(n: int, seed: int, *, flip: float = 0.2) -> Encoded:
    """Four classes that small dimensions tell apart, under a large one of noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=n)
    small = np.eye(4)[labels] + 0.2 * random.random((n, 4))
    features = np.concatenate([100 * random.random((n, 1)), small], axis=1)
    signs = np.where(np.arange(16) // 4 == labels[:, None], 1.0, -1.0)
    latent = signs * random.random((n, 16)) * np.where(random.random((n, 16)) < flip, -0.5, 1)
    return Encoded(torch.from_numpy(latent).float(), torch.from_numpy(features).float(), labels)


def test_raw_euclid_loses_where_one_dimension_drowns_the_others() -> None:
    figures = compare_searches(_encoded(600, 0), _encoded(80, 1))
    assert figures["feature_scaling"] == "standardised"
    maps = figures["es_map"]
    assert maps["standardised"] > 0.9 > 0.5 > maps["none"]
    precision = figures["precision@10"]
    assert figures["mode"] == "hds"  # as good as es, and cheaper
    assert precision["es"] == precision["hds"] > precision["acs"] > precision["bcs"]


@pytest.mark.parametrize("several", [False, True])
def test_figures_are_those_of_the_search_itself(several: bool) -> None:
    database, queries = _encoded(500, 2), _encoded(130, 3)
    if several:
        eye = np.eye(4, dtype=bool)
        database, queries = (
            one._replace(targets=eye[one.targets] | eye[(one.targets + 1) % 4])
            for one in (database, queries)
        )
    figures = compare_searches(database, queries)
    statistics = feature_statistics(database.features, figures["feature_scaling"])
    features = [scaled_features(one.features, *statistics).numpy() for one in (database, queries)]
    codes = [pack_bits(one.latent.numpy() >= 0) for one in (database, queries)]
    searcher = ArraySearcher(codes[0], features[0])
    relevant = (
        (queries.targets.astype(int) @ database.targets.astype(int).T) > 0
        if several
        else queries.targets[:, None] == database.targets
    )
    for mode in CHEAPER_FIRST:
        found = searcher.search_encoded(
            codes[1], features[1], SearchOptions(10, mode=mode), queries.latent.numpy()
        ).ids
        expected = np.take_along_axis(relevant, found, axis=1).mean()
        assert figures["precision@10"][mode] == pytest.approx(expected, abs=1e-3)
    found = searcher.search_encoded(codes[1], features[1], SearchOptions(500, mode="es")).ids
    expected = average_precision(np.take_along_axis(relevant, found, axis=1)).mean()
    assert figures["es_map"][figures["feature_scaling"]] == pytest.approx(expected, abs=1e-3)


def test_of_equally_good_modes_the_cheapest_and_of_scalings_none() -> None:
    labels = np.repeat(np.arange(3), 40)
    latent = torch.from_numpy(np.eye(3).repeat(40, 0).repeat(4, 1) - 0.5).float()
    perfect = Encoded(latent, latent, labels)
    figures = compare_searches(perfect, perfect)
    assert (figures["feature_scaling"], figures["mode"]) == ("none", "bcs")
    assert set(figures["precision@10"].values()) == {1.0}


def test_without_validation_images_standardised_and_no_mode() -> None:
    database = _encoded(50, 0)
    none = Encoded(*(part[:0] for part in database))
    assert compare_searches(database, none) == {"feature_scaling": "standardised", "mode": None}


def test_a_dimension_that_never_changes_gives_zero() -> None:
    features = torch.rand(40, 5)
    features[:, 2] = 7
    mean, scale = feature_statistics(features, "standardised")
    assert scale[2] == 0
    scaled = scaled_features(features, mean, scale)
    assert bool(scaled.isfinite().all())
    assert not scaled[:, 2].any()
    same = features[:1].expand(9, 5)
    assert not scaled_features(same, *feature_statistics(same, "standardised")).any()


def test_the_choice_is_stored_told_and_in_the_card(
    digits: Source, quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit(digits, quick(), tmp_path / "m")
    config = read_config(tmp_path / "m")[0]
    assert config.mode == config.training["search"]["mode"] == result.search["mode"]
    assert config.feature_scaling == result.search["feature_scaling"]
    assert config.training["search"]["images"] == {"database": 320, "queries": 80}
    assert Encoder.load(tmp_path / "m").mode == config.mode
    assert f"best mode: {config.mode} (precision@10: bcs 0." in capsys.readouterr().err
    card = (tmp_path / "m" / "README.md").read_text()
    assert "## Search" in card
    assert f"| proposed mode | {config.mode} |" in card
    # What the model gives out is what was compared.
    net, config = load_model(tmp_path / "m")
    pixels = np.stack([config.preprocessing.pixels(digits.load(i)) for i in range(20)])
    with torch.inference_mode():
        features = net(torch.from_numpy(config.preprocessing.normalise(pixels))).features
    of_unit_length = torch.allclose(features.norm(dim=1), torch.ones(20), atol=1e-5)
    assert of_unit_length == (config.feature_scaling != "none")
