"""A model's description: round trip, and nothing but one kind of error from any other JSON."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hashlens import ModelError
from hashlens.data.preprocessing import Preprocessing
from hashlens.models.description import ModelConfig, parse_config

CONFIG = ModelConfig(48, 512, ("a", "b"), "resnet9", Preprocessing(32), radius=3)
KEYS = sorted(CONFIG.to_dict())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    bits=st.integers(8, 4096),
    classes=st.lists(st.text(), max_size=5),
    radius=st.none() | st.integers(0, 64),
    size=st.integers(1, 500),
    multi_label=st.booleans(),
)
def test_json_round_trip(
    bits: int, classes: list[str], radius: int | None, size: int, multi_label: bool
) -> None:
    config = ModelConfig(
        bits,
        16,
        tuple(classes),
        "resnet9",
        Preprocessing(size),
        multi_label=multi_label,
        radius=radius,
        feature_scaling="centred",
        mode="acs",
        training={"data": {"images": 3}},
        fingerprint="f",
    )
    assert parse_config(json.dumps(config.to_dict()), Path("model.json"))[0] == config


@given(key=st.sampled_from(KEYS), value=JSON)
@example(key="bits", value=float("inf"))
@example(key="preprocessing", value={"size": 1})
@example(key="training", value=[1])
def test_any_changed_entry_is_read_or_refused(key: str, value: Any) -> None:
    text = json.dumps({**CONFIG.to_dict(), key: value})
    with contextlib.suppress(ModelError):
        assert 8 <= parse_config(text, Path("model.json"))[0].bits <= 4096


@pytest.mark.parametrize("key", KEYS)
def test_every_entry_is_needed(key: str) -> None:
    values = CONFIG.to_dict()
    del values[key]
    with pytest.raises(ModelError, match=r"model\.json"):
        parse_config(json.dumps(values), Path("model.json"))


@given(JSON | st.text())
def test_other_json_and_text_are_refused(value: Any) -> None:
    for text in (json.dumps(value), str(value)):
        with pytest.raises(ModelError, match=r"model\.json"):
            parse_config(text, Path("model.json"))


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_model_has_features_as_they_are_and_no_mode(version: int) -> None:
    values = {**CONFIG.to_dict(), "format_version": version}
    del values["feature_scaling"], values["mode"]
    config = parse_config(json.dumps(values), Path("model.json"))[0]
    assert (config.feature_scaling, config.mode) == ("none", None)
