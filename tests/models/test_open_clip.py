"""CLIP's towers as a backbone: images and texts through one head, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import tiny_clip
from hashlens import (
    Encoder,
    Hasher,
    HashIndex,
    InvalidInputError,
    MissingExtraError,
    ModelError,
    Text,
    pack_bits,
    train,
)
from hashlens.models.backbones import Backbone, create_backbone
from hashlens.models.checkpoint import load_model

WORDS = ["a red picture", "a green picture", "a blue picture"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, pictures of three colours, and models over it: without labels, frozen, fine-tuned."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_clip(folder / "clip")
    photos = tiny_clip.save_pictures(folder / "photos")
    name = f"open_clip:local-dir:{folder / 'clip'}"
    quiet: dict[str, Any] = {"backbone": name, "progress": False}
    train(photos, folder / "itq", 16, unsupervised=True, **quiet)
    train(photos, folder / "frozen", 16, freeze_backbone=True, epochs=2, **quiet)
    train(photos, folder / "tuned", 16, freeze_backbone=False, epochs=1, **quiet)
    return folder


def _open_clip(home: Path) -> tuple[Any, Any]:
    """The same CLIP and its preprocessing, as open_clip itself loads them."""
    return open_clip.create_model_from_pretrained(f"local-dir:{home / 'clip'}")


def _backbone(home: Path, folder: str = "clip", **options: Any) -> Backbone:
    return create_backbone(f"open_clip:local-dir:{home / folder}", pretrained=True, **options)


@torch.inference_mode()
def test_features_are_open_clips_own_embedding(home: Path) -> None:
    clip, preprocess = _open_clip(home)
    built = _backbone(home)
    assert built.feature_dim == tiny_clip.WIDTH
    assert built.preprocessing.size == tiny_clip.SIDE
    assert list(built.preprocessing.mean) == tiny_clip.SEEN["mean"]
    pixels = np.stack([tiny_clip.picture(c, np.random.default_rng(5)) for c in tiny_clip.COLOURS])
    expected = clip.encode_image(
        torch.stack([preprocess(Image.fromarray(each)) for each in pixels]), normalize=True
    )
    got = built.module.eval()(torch.from_numpy(built.preprocessing.normalise(pixels)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(3))


@torch.inference_mode()
@pytest.mark.parametrize("model", ["itq", "frozen"])
def test_a_text_goes_through_the_head_of_the_images(home: Path, model: str) -> None:
    clip, _ = _open_clip(home)
    tokens = open_clip.get_tokenizer(f"local-dir:{home / 'clip'}")(WORDS)
    net, _ = load_model(home / model)
    expected = net.from_features(clip.encode_text(tokens, normalize=True))
    made = Encoder.load(home / model).encode_text(WORDS)
    np.testing.assert_allclose(made.latent, expected.latent.numpy(), atol=1e-5)
    np.testing.assert_allclose(made.features, expected.features.numpy(), atol=1e-5)
    np.testing.assert_array_equal(made.codes, pack_bits(made.latent >= 0))
    assert len(np.unique(made.codes, axis=0)) > 1


def test_words_find_pictures(home: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(home / "itq")
    index = HashIndex.create(tmp_path / "i", encoder)
    paths = sorted((home / "photos").rglob("*.png"))
    index.add(paths, labels=[path.parent.name for path in paths])
    for mode in ("bcs", "acs", "hds", "es"):
        answers = index.search([Text(each) for each in WORDS], k=10, mode=mode)
        for colour, hits in zip(tiny_clip.COLOURS, answers, strict=True):
            assert sum(hit.label == colour for hit in hits) >= 8, (mode, colour)
    mixed = index.search([0, Text("a red picture"), paths[5]], k=1, mode="es")
    assert [mixed[0][0].id, mixed[1][0].label, mixed[2][0].id] == [0, "red", 5]


def test_another_size_and_other_weights(home: Path, tmp_path: Path) -> None:
    assert _backbone(home, size=48).preprocessing.size == 48
    tiny_clip.save_clip(tmp_path / "other", steps=0)
    file = tmp_path / "other" / "open_clip_model.safetensors"
    given = create_backbone(f"open_clip:local-dir:{home / 'clip'}", weights=file)
    states = [each.module.state_dict() for each in (given, _backbone(tmp_path, folder="other"))]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert given.start.origin.startswith("open_clip local-dir:")


def test_a_tower_that_was_trained_away_is_refused_for_texts(home: Path) -> None:
    encoder = Encoder.load(home / "tuned")
    assert encoder.encode([next((home / "photos").rglob("*.png"))])[0].shape == (1, 2)
    with pytest.raises(ModelError, match=r"not that of .*--freeze-backbone"):
        encoder.encode_text(WORDS)


def test_another_checkpoint_in_the_folder_is_refused(home: Path, tmp_path: Path) -> None:
    clip = shutil.copytree(home / "clip", tmp_path / "clip")
    train(
        home / "photos",
        tmp_path / "m",
        8,
        unsupervised=True,
        backbone=f"open_clip:local-dir:{clip}",
        progress=False,
    )
    shutil.rmtree(clip)
    tiny_clip.save_clip(clip, steps=1)
    with pytest.raises(ModelError, match="not that of"):
        Encoder.load(tmp_path / "m").encode_text(WORDS)


def test_models_without_texts_say_so(home: Path, model_dir: Path, onnx_file: Path) -> None:
    for model in (model_dir, onnx_file):
        with pytest.raises(ModelError, match=r"knows no texts.*open_clip:NAME"):
            Encoder.load(model).encode_text(["a cat"])
    encoder = Encoder.load(home / "itq")
    for texts in ("a cat", [], [" "]):
        with pytest.raises(InvalidInputError, match="list of words"):
            encoder.encode_text(texts)


def test_an_index_over_vectors_knows_no_texts(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    index = HashIndex.create(tmp_path / "i", Hasher(bits=8, method="LSH").fit(vectors))
    with pytest.raises(InvalidInputError, match="knows no texts"):
        index.search(Text("a cat"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("open_clip:NoSuch", {}, r"expected NAME/TAG, known are .* and \d+ more"),
        ("open_clip:ViT-B-32", {"pretrained": True}, "expected NAME/TAG, known are openai"),
        ("open_clip:ViT-B-32/none", {}, "expected NAME/TAG, known are openai"),
        ("open_clip:hf-hub:a/b", {}, "expected NAME/TAG"),
        ("open_clip:coca_ViT-B-32", {}, "several vectors"),
        ("open_clip:local-dir:/no/such", {}, "not found: /no/such"),
        ("open_clip:local-dir:{}", {"weights": Path("x.bin")}, "a pickle is not read"),
        ("open_clip:local-dir:{}", {"channels": 1}, "colour images"),
        ("open_clip", {}, "as in open_clip:NAME"),
    ],
)
def test_refuses_with_a_reason(home: Path, name: str, options: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        create_backbone(name.format(home / "clip"), **options)
    assert "\n" not in str(raised.value)


def test_a_pickle_in_the_folder_is_not_read(home: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    folder = tmp_path / "clip"
    folder.mkdir()
    shutil.copy(home / "clip" / "open_clip_config.json", folder)
    torch.save({"visual.proj": Trap()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be built"):
        create_backbone(f"open_clip:local-dir:{folder}", pretrained=True)
    assert not (tmp_path / "sprung").exists()


def test_a_tokenizer_that_brings_code_is_not_loaded(home: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(home / "itq", tmp_path / "m"))
    config = home / "clip" / "open_clip_config.json"
    before = config.read_text()
    described = json.loads(before)
    described["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    try:
        config.write_text(json.dumps(described))
        with pytest.raises(ModelError, match="brings code"):
            Encoder.load(model).encode_text(WORDS)
    finally:
        config.write_text(before)


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"hashlens\[clip\]"):
        create_backbone("open_clip:ViT-B-32")


def test_python_s_logging_stays_as_it_was(home: Path) -> None:
    before = (list(logging.root.handlers), logging.root.disabled)
    _backbone(home)
    create_backbone(f"open_clip:local-dir:{home / 'clip'}")
    assert (logging.root.handlers, logging.root.disabled) == before
