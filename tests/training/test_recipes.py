"""Recipes: all of them load, nothing stays open, and ``auto`` gives its reasons."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hashlens import InvalidInputError
from hashlens.training.recipes import RECIPES, ImageFacts, configure, recipe_values

DIGITS = ImageFacts(images=1437, side=8, channels=1, cuda=False, bf16=False)
CIFAR = ImageFacts(images=50_000, side=32, channels=3, cuda=False, bf16=True)
PHOTOS = ImageFacts(images=3000, side=640, channels=3, cuda=False, bf16=False, rate=1.0)
OPEN = {"start", "weights"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "facts", [dataclasses.replace(f, rate=9.0) for f in (DIGITS, CIFAR, PHOTOS)]
)
@pytest.mark.parametrize("cuda", [False, True])
def test_a_resolved_configuration_leaves_nothing_open(
    recipe: str, facts: ImageFacts, cuda: bool
) -> None:
    config, _ = configure(recipe, {}, dataclasses.replace(facts, cuda=cuda))
    left = {name for name, value in dataclasses.asdict(config).items() if value is None}
    # A backbone that comes with its own input size keeps it.
    assert left <= OPEN | ({"size"} if config.recipe != "small" else set())


def test_auto_picks_by_size_and_says_why() -> None:
    small, why = configure("auto", {}, CIFAR)
    assert (small.recipe, small.backbone, small.flip) == ("small", "resnet9?width=32", True)
    assert "about 32 px" in why[0]
    large, why = configure("auto", {}, PHOTOS)
    assert (large.recipe, large.freeze_backbone, large.size) == ("finetune", True, 128)
    assert any("no CUDA device" in reason for reason in why)
    assert any("about 500 minutes at 1.0 images per second, more than 60" in line for line in why)
    on_gpu, _ = configure("auto", {}, dataclasses.replace(PHOTOS, cuda=True))
    assert on_gpu.freeze_backbone is False


@pytest.mark.parametrize(
    ("rate", "values", "frozen", "words"),
    [
        (8.4, {}, False, "about 60 minutes at 8.4 images per second"),  # 3000 images, 10 epochs
        (8.2, {}, True, "about 61 minutes"),
        (4.2, {"epochs": 5}, False, "about 60 minutes"),
        (1.0, {"backbone": "timm:resnet18", "pretrained": False}, False, "weights are random"),
        (1.0, {"freeze_backbone": False}, False, None),  # the user's own word
    ],
)
def test_a_backbone_is_trained_where_that_takes_an_hour_or_less(
    rate: float, values: dict[str, object], frozen: bool, words: str | None
) -> None:
    config, why = configure("finetune", values, dataclasses.replace(PHOTOS, rate=rate))
    assert config.freeze_backbone is frozen
    told = [line for line in why if line.startswith("freeze backbone")]
    assert len(told) == (words is not None)
    assert all(words in line for line in told if words)


def test_the_time_of_training_is_measured_on_this_processor() -> None:
    quick = dataclasses.replace(PHOTOS, images=40, rate=None)
    values = {"backbone": "timm:lcnet_035", "size": 32, "pretrained": True, "epochs": 1}
    config, why = configure("finetune", values, quick)
    assert config.freeze_backbone is False
    assert any("images per second, as a few steps show" in line for line in why)


def test_auto_takes_given_weights_as_a_start() -> None:
    config, why = configure(
        "auto", {"weights": "w.safetensors"}, dataclasses.replace(CIFAR, rate=1.0)
    )
    assert config.recipe == "finetune"
    assert "weights to start from" in why[0]


def test_auto_keeps_what_a_named_backbone_learned() -> None:
    config, why = configure("auto", {"backbone": "timm:resnet18", "freeze_backbone": True}, CIFAR)
    assert (config.recipe, config.pretrained, config.feature_layer) == ("finetune", True, 256)
    assert "a pre-trained backbone is asked for" in why[0]
    config, why = configure("auto", {"freeze_backbone": True}, CIFAR)
    assert (config.backbone, config.pretrained) == ("timm:mobilenetv2_100", True)
    assert "a frozen backbone must be pre-trained" in why[0]


@pytest.mark.parametrize(
    ("values", "pretrained"),
    [
        ({}, False),
        ({"backbone": "resnet9"}, False),
        ({"backbone": "timm:resnet18"}, True),
        ({"backbone": "timm:resnet18", "pretrained": False}, False),
        ({"backbone": "timm:resnet18", "weights": "w.pth"}, False),  # the file is the start
    ],
)
def test_a_named_timm_backbone_is_pretrained_unless_the_user_says_no(
    values: dict[str, object], pretrained: bool
) -> None:
    assert configure("small", values, CIFAR)[0].pretrained is pretrained


@pytest.mark.parametrize("backbone", ["resnet9?width=32", "timm:resnet18"])
def test_a_frozen_and_random_backbone_is_refused(backbone: str) -> None:
    values = {"backbone": backbone, "freeze_backbone": True, "pretrained": False}
    with pytest.raises(InvalidInputError, match=r"starts random.*--weights FILE.*timm:mobilenet"):
        configure("small", values, CIFAR)
    frozen, _ = configure("small", {**values, "weights": "w.pth"}, CIFAR)
    assert frozen.freeze_backbone


def test_depthwise_networks_use_fp32_on_a_processor() -> None:
    quick = dataclasses.replace(PHOTOS, bf16=True)
    on_gpu = dataclasses.replace(quick, cuda=True)
    light, plain = {"backbone": "timm:tf_efficientnet_lite0"}, {"backbone": "timm:resnet18"}
    assert configure("finetune", {}, quick)[0].precision == "fp32"  # mobilenetv2_100
    assert configure("finetune", light, quick)[0].precision == "fp32"
    assert configure("finetune", plain, quick)[0].precision == "bf16"
    assert configure("finetune", light, on_gpu)[0].precision == "bf16"


def test_digits_are_not_mirrored() -> None:
    config, _ = configure("auto", {}, DIGITS)
    assert (config.backbone, config.flip, config.size) == ("smallcnn", False, 8)


def test_what_the_user_sets_wins() -> None:
    config, _ = configure("small", {"epochs": 3, "flip": True, "learning_rate": 0.5}, DIGITS)
    assert (config.epochs, config.flip, config.learning_rate) == (3, True, 0.5)


def test_the_paper_recipe_is_the_authors_solver() -> None:
    values = recipe_values("paper")
    assert values["optimizer"] == "sgd"
    assert (values["learning_rate"], values["classifier_rate"]) == (0.001, 10.0)
    assert (values["momentum"], values["weight_decay"], values["schedule"]) == (0.9, 5e-4, "step")
    assert values["latent_normalisation"] is False
    assert (values["latent_std"], values["latent_bias"]) == (0.005, 1.0)
    assert (values["latent_dropout"], values["bias_rate"]) == (0.5, 2.0)


@pytest.mark.parametrize("cuda", [False, True])
def test_the_paper_recipe_has_the_backbones_own_size_on_any_hardware(cuda: bool) -> None:
    facts = dataclasses.replace(CIFAR, side=300, cuda=cuda, rate=1.0)
    for backbone in ("alexnet", "caffenet"):  # the second takes no other
        assert configure("paper", {"backbone": backbone}, facts)[0].size is None


def test_a_size_that_is_left_open_is_chosen() -> None:
    assert configure("auto", {"size": None}, CIFAR)[0] == configure("auto", {}, CIFAR)[0]


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 2\nobjective = "csq"\n')
    config, _ = configure(str(path), {}, CIFAR)
    assert (config.recipe, config.epochs, config.objective) == ("mine", 2, "csq")


@pytest.mark.parametrize(
    ("text", "words"),
    [("epochz = 2", "unknown key epochz"), ("epochs = ", "Invalid value"), ("bits = 4", "8 to")],
)
def test_a_wrong_recipe_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=rf"mine.toml: .*{words}"):
        configure(str(path), {}, CIFAR)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"paper, vectors, or a \.toml"):
        configure("large", {}, CIFAR)
    with pytest.raises(InvalidInputError, match=r"found none at nowhere\.toml"):
        configure("nowhere.toml", {}, CIFAR)
