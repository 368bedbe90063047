"""Images to codes: an oracle in plain torch, order, batches, bad images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashlens import Encoder, ImageError, InvalidInputError, ModelError
from hashlens.models.checkpoint import load_model
from hashlens.types import EncoderLike


@pytest.fixture(params=["torch", "onnx"])
def encoder(request: pytest.FixtureRequest, model_dir: Path, onnx_file: Path) -> Encoder:
    return Encoder.load(model_dir if request.param == "torch" else onnx_file)


def _oracle(model: Path, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits, features and scores by hand: one image at a time, PIL and torch only."""
    net, config = load_model(model)
    image = config.preprocessing
    bits, features, scores = [], [], []
    for picture in images:
        small = picture.convert("RGB").resize(
            (image.size, image.size), Image.Resampling.BICUBIC, reducing_gap=3.0
        )
        values = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (image.mean, image.std))
        with torch.inference_mode():
            out = net((values - mean) / std)
        bits.append((out.activations >= 0.5).numpy()[0])
        features.append(out.features.numpy()[0])
        scores.append(out.scores.numpy()[0])
    return np.stack(bits), np.stack(features), np.stack(scores)


def test_codes_features_and_scores_are_those_of_the_network(
    encoder: Encoder, model_dir: Path, pictures: list[Image.Image]
) -> None:
    bits, features, scores = _oracle(model_dir, pictures)
    codes, got = encoder.encode(pictures)
    assert (codes.dtype, codes.shape) == (np.uint8, (9, 3))
    assert (got.dtype, got.shape) == (np.float32, (9, 16))
    unpacked = np.array([[code[j // 8] >> (j % 8) & 1 for j in range(24)] for code in codes])
    np.testing.assert_array_equal(unpacked[:, :20], bits)
    assert not unpacked[:, 20:].any()
    np.testing.assert_allclose(got, features, rtol=1e-3, atol=1e-4)
    (batch,) = encoder.encode_batches(pictures)
    assert batch.scores is not None
    np.testing.assert_allclose(batch.scores, scores, rtol=1e-3, atol=1e-4)


def test_describes_itself(encoder: Encoder, model_dir: Path) -> None:
    config = load_model(model_dir)[1]
    assert isinstance(encoder, EncoderLike)
    assert (encoder.bits, encoder.feature_dim) == (20, 16)
    assert encoder.classes == ("cat", "dog", "eel")
    assert encoder.fingerprint == config.fingerprint
    assert encoder.preprocessing == config.preprocessing
    assert encoder.radius is None
    assert encoder.mode is None


@pytest.mark.parametrize("batch_size", [1, 4, 9, 64])
def test_batches_do_not_change_the_answer(
    encoder: Encoder, pictures: list[Image.Image], batch_size: int
) -> None:
    codes, features = encoder.encode(pictures)
    batches = list(encoder.encode_batches(iter(pictures), batch_size=batch_size))
    assert len(batches) == -(-9 // batch_size)
    np.testing.assert_array_equal(np.concatenate([b.codes for b in batches]), codes)
    np.testing.assert_allclose(
        np.concatenate([b.features for b in batches]), features, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(np.concatenate([b.positions for b in batches]), np.arange(9))


def test_twice_is_bitwise_the_same(encoder: Encoder, pictures: list[Image.Image]) -> None:
    first, second = encoder.encode(pictures), encoder.encode(pictures)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_no_images(encoder: Encoder) -> None:
    codes, features = encoder.encode([])
    assert (codes.shape, codes.dtype) == ((0, 3), np.uint8)
    assert (features.shape, features.dtype) == ((0, 16), np.float32)
    assert list(encoder.encode_batches([])) == []


def test_every_kind_of_input_gives_the_same_code(
    encoder: Encoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    picture = pictures[0]
    path = tmp_path / "picture.png"
    picture.save(path)
    kinds = [picture, path, str(path), path.read_bytes(), np.asarray(picture)]
    codes, features = encoder.encode(kinds)
    assert (codes == codes[0]).all()
    assert (features == features[0]).all()


def test_unreadable_images_are_reported_or_raise(
    encoder: Encoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    buffer = io.BytesIO()
    pictures[1].save(buffer, "PNG")
    images = [text, pictures[0], buffer.getvalue()[:60], pictures[1], tmp_path / "none.jpg"]
    batches = list(encoder.encode_batches(images, batch_size=2))
    assert [batch.positions.tolist() for batch in batches] == [[1], [3], []]
    skipped = [image for batch in batches for image in batch.skipped]
    assert [image.position for image in skipped] == [0, 2, 4]
    assert "text.jpg" in skipped[0].name
    codes, _ = encoder.encode([pictures[0], pictures[1]])
    np.testing.assert_array_equal(np.concatenate([b.codes for b in batches]), codes)
    with pytest.raises(ImageError, match=r"text\.jpg"):
        encoder.encode(images)


def test_grey_pictures_for_a_colour_model_and_the_reverse(
    encoder: Encoder, pictures: list[Image.Image], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    grey = pictures[0].convert("L")
    codes, features = encoder.encode([grey, grey.convert("RGB")])
    assert (codes[0] == codes[1]).all()
    assert (features[0] == features[1]).all()
    small = Encoder.load(make_model(tmp_path / "grey", backbone="smallcnn", channels=1))
    codes, _ = small.encode([pictures[0], grey])
    assert (codes[0] == codes[1]).all()


def test_one_image_instead_of_many_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInputError, match=r"encode\(\[image\]\)"):
        encoder.encode("picture.jpg")


def test_a_consumer_may_stop_early(encoder: Encoder, pictures: list[Image.Image]) -> None:
    stream = encoder.encode_batches(pictures * 10, batch_size=2)
    assert next(stream).positions.tolist() == [0, 1]
    stream.close()  # type: ignore[attr-defined]


def test_what_is_not_a_model_is_refused(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"x")
    for path, message in [
        (tmp_path / "file.bin", "expected a model directory"),
        (tmp_path / "none", "no such directory"),
        (tmp_path, "no model here"),
        (tmp_path / "none.onnx", "no file"),
    ]:
        with pytest.raises(ModelError, match=message):
            Encoder.load(path)
    with pytest.raises(ModelError, match="use 'cpu'"):
        Encoder.load(model_dir, device="no-such-device")


@pytest.mark.parametrize("bits", [8, 9, 4096])
def test_lengths_of_codes(
    make_model: Callable[..., Path], tmp_path: Path, bits: int, pictures: list[Image.Image]
) -> None:
    encoder = Encoder.load(make_model(tmp_path / "model", bits=bits))
    codes, _ = encoder.encode(pictures)
    assert codes.shape == (9, -(-bits // 8))
    if bits % 8:
        assert not (codes[:, -1] >> (bits % 8)).any()
