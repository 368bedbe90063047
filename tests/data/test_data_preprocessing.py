"""Preprocessing: sizes, channels, cropping, normalising, and its JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from hashlens import InvalidInputError
from hashlens.data.opening import load_image
from hashlens.data.preprocessing import Preprocessing, input_from_dict
from image_builders import encoded, picture

GREY = {"channels": 1, "mean": (0.1307,), "std": (0.3081,)}


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    grey=st.booleans(),
    grey_picture=st.booleans(),
    resize=st.sampled_from(["squash", "crop"]),
    fraction=st.floats(0.05, 1),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_any_picture_becomes_the_asked_for_shape(
    width: int, height: int, size: int, grey: bool, grey_picture: bool, **options: Any
) -> None:
    options["crop_fraction"] = options.pop("fraction")
    preprocessing = Preprocessing(size, **(GREY if grey else {}), **options)
    image = Image.new(
        "L" if grey_picture else "RGB", (width, height), 77 if grey_picture else "red"
    )
    pixels = preprocessing.pixels(image)
    assert pixels.shape == (size, size, 1 if grey else 3)
    assert pixels.dtype == np.uint8
    expected = [77] if grey_picture else [76] if grey else [255, 0, 0]
    assert (pixels == expected).all()


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = picture("circle", 0, 32)
    assert np.array_equal(Preprocessing(32).pixels(image), np.asarray(image))


def test_squash_keeps_the_whole_picture_and_crop_its_middle() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:40, 1] = pixels[:, 40:, 2] = 255
    image = Image.fromarray(pixels)
    squashed = Preprocessing(12, interpolation="nearest").pixels(image)
    assert squashed[6, [1, 6, 10]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    cropped = Preprocessing(12, resize="crop", interpolation="nearest").pixels(image)
    assert (cropped == [0, 255, 0]).all()


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256)])
def test_crop_is_resizing_the_shorter_side_then_cropping(shape: tuple[int, int]) -> None:
    height, width = shape
    image = picture("stripe", 4, 400).crop((0, 0, width, height))
    image = image.filter(ImageFilter.GaussianBlur(3))  # a half pixel's shift then matters little
    preprocessing = Preprocessing(112, resize="crop", crop_fraction=0.875)
    scale = 128 / min(width, height)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 112) / 2, (resized.height - 112) / 2
    expected = np.asarray(
        resized.crop((round(left), round(top), round(left) + 112, round(top) + 112))
    )
    difference = np.abs(preprocessing.pixels(image).astype(int) - expected.astype(int))
    assert difference.mean() < 2
    assert preprocessing.size_hint == 128


def test_an_extremely_long_picture_takes_no_extreme_memory() -> None:
    image = Image.new("RGB", (200_000, 1))
    assert Preprocessing(64, resize="crop", crop_fraction=0.875).pixels(image).shape == (64, 64, 3)


def test_colour_to_grey_is_the_usual_weighting() -> None:
    pixels = Preprocessing(2, **GREY).pixels(Image.new("RGB", (2, 2), (0, 255, 0)))
    assert (pixels == round(0.587 * 255)).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_normalising_is_scaling_and_channels_first(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    mean, std = rng.random(channels), rng.uniform(0.1, 2, channels)
    preprocessing = Preprocessing(5, channels, tuple(mean), tuple(std))  # type: ignore[arg-type]
    pixels = rng.integers(0, 256, (3, 5, 5, channels), np.uint8)
    values = preprocessing.normalise(pixels)
    expected = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


def test_normalising_one_image_or_many_gives_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)
    preprocessing = Preprocessing(6)
    whole = preprocessing.normalise(pixels)
    assert all(
        np.array_equal(preprocessing.normalise(pixels[i : i + 1])[0], whole[i]) for i in range(8)
    )
    assert preprocessing.normalise(pixels[:0]).shape == (0, 3, 6, 6)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3))],
)
def test_pixels_of_another_shape_are_refused(pixels: Any) -> None:
    with pytest.raises(InvalidInputError, match="pixels: expected uint8 of shape"):
        Preprocessing(4).normalise(pixels)


def test_reading_an_image_decodes_it_at_reduced_size() -> None:
    large = picture("circle", 1, 512)
    data = encoded(large, "JPEG", quality=95)
    preprocessing = Preprocessing(32)
    reduced = preprocessing.pixels(load_image(data, size_hint=32)).astype(int)
    assert np.abs(reduced - preprocessing.pixels(large).astype(int)).mean() < 4


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(96, 1, (0.2,), (0.3,), "crop", 0.875, "bilinear")
    again = input_from_dict(json.loads(json.dumps(preprocessing.to_dict())))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": 32.0}, "size"),
        ({"channels": 4}, "channels"),
        ({"mean": [0.5]}, "mean: expected 3"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean"),
        ({"resize": "stretch"}, "resize"),
        ({"crop_fraction": 1.5}, "crop_fraction"),
        ({"interpolation": "best"}, "interpolation"),
        ({"mean": 3}, "preprocessing"),
        ({"colour": True}, "differing in .*colour"),
    ],
)
def test_json_of_another_kind_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        input_from_dict({**Preprocessing(32).to_dict(), **change})


def test_json_that_lacks_a_field_is_refused() -> None:
    values = Preprocessing(32).to_dict()
    del values["resize"]
    with pytest.raises(InvalidInputError, match="resize"):
        input_from_dict(values)
