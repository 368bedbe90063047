"""The configuration refuses what it does not know, and survives TOML."""

from __future__ import annotations

import re
import tomllib

import pytest

from hashlens import InvalidInputError
from hashlens.training.config import TrainingConfig, options
from hashlens.training.objectives import objectives


def test_unknown_key_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown key learning_rat; .*learning_rate"):
        TrainingConfig().with_values({"learning_rat": 0.1})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bits", 7, "8 to 4096, got 7"),
        ("bits", 4097, "8 to 4096, got 4097"),
        ("bits", 48.5, "expected a whole number, 8 to 4096, got 48.5"),
        ("bits", True, "expected a whole number, 8 to 4096, got True"),
        ("objective", "hinge", re.escape(f"one of {', '.join(objectives())}, got 'hinge'")),
        ("schedule", "linear", "one of step, onecycle, cosine, got 'linear'"),
        ("epochs", 0, "epochs: expected a whole number, 1 or more, got 0"),
        ("validation", 0.0, "validation: expected a number, 0.001 to 0.9, got 0"),
        ("precision", "fp64", "one of fp32, bf16, got 'fp64'"),
        ("flip", "yes", "flip: expected true or false, got 'yes'"),
    ],
)
def test_wrong_values_are_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        TrainingConfig().with_values({name: value})


def test_whole_numbers_do_for_fractions() -> None:
    assert TrainingConfig().with_values({"learning_rate": 1}).learning_rate == 1


def test_toml_gives_the_same_configuration_back() -> None:
    config = TrainingConfig(bits=128, backbone="timm:x?a='b'", flip=True, learning_rate=1e-5)
    read = tomllib.loads(config.to_toml())
    assert "epochs" not in read  # left open
    assert TrainingConfig().with_values(read) == config


def test_codes_may_be_as_long_as_they_can_be_packed() -> None:
    from hashlens.codes.packing import MAX_BITS, MIN_BITS

    (bits,) = (option for option in options() if option.name == "bits")
    assert (bits.low, bits.high) == (MIN_BITS, MAX_BITS)
