"""Each backbone's shape, weights files, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hashlens import ModelError
from hashlens.data.preprocessing import Preprocessing
from hashlens.models.backbones import (
    Backbone,
    create_backbone,
    describe_backbones,
    has_published_weights,
    register_backbone,
)


@pytest.mark.parametrize(
    ("name", "channels", "size", "width"),
    [
        ("smallcnn", 1, 8, 256),
        ("smallcnn", 1, 28, 256),
        ("smallcnn", 3, 13, 256),
        ("resnet9?width=4", 3, 32, 32),
        ("resnet9", 1, 16, 512),
        ("timm:mobilenetv2_050", 3, 64, 1280),
        ("timm:mobilenetv2_050?pad_type=same", 1, 33, 1280),
        ("timm:deit_tiny_patch16_224", 3, 32, 192),
    ],
)
def test_features_have_the_stated_width(name: str, channels: int, size: int, width: int) -> None:
    backbone = create_backbone(name, channels=channels, size=size)
    assert backbone.name == name
    assert backbone.feature_dim == width
    assert (backbone.preprocessing.size, backbone.preprocessing.channels) == (size, channels)
    with torch.inference_mode():
        features = backbone.module.eval()(torch.randn(2, channels, size, size))
    assert features.shape == (2, width)


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "lcnet_035", "ghostnet_050"])
def test_the_width_is_that_of_what_comes_out(model: str) -> None:
    """timm's ``num_features`` is the width before the last layer for these."""
    backbone = create_backbone(f"timm:{model}", size=64)
    with torch.inference_mode():
        features = backbone.module.eval()(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, backbone.feature_dim)
    assert backbone.feature_dim != backbone.module.num_features


def _smallest_of_each_family() -> list[str]:
    """One model of every module of timm, small by its name."""
    hints = ["test", "atto", "zepto", "femto", "pico", "nano", "tiny", "xxs", "micro", "mini"]
    hints += ["small", "_xs", "_s", "b0", "_050", "18", "11"]

    def size(name: str) -> tuple[int, int, str]:
        rank = next((i for i, hint in enumerate(hints) if hint in name), len(hints))
        return rank, len(name), name

    families = (timm.list_models(module=module) for module in timm.list_modules())
    return [min(names, key=size) for names in families if names]


@pytest.mark.slow
@pytest.mark.parametrize("model", _smallest_of_each_family())
def test_one_model_of_every_timm_family_gives_features_of_the_stated_width(model: str) -> None:
    backbone = create_backbone(f"timm:{model}")
    size = backbone.preprocessing.size
    with torch.inference_mode():
        features = backbone.module.eval()(torch.randn(2, 3, size, size))
    assert features.shape == (2, backbone.feature_dim)


def test_a_backbone_is_one_registered_function() -> None:
    @register_backbone
    def flat(*, size: int | None, scale: float = 1.0) -> Backbone:
        side = size or 8
        image = Preprocessing(size=side)
        return Backbone(f"flat?scale={scale}", torch.nn.Flatten(), 3 * side * side, image)

    assert create_backbone("flat?scale=0.5", size=4).feature_dim == 48
    assert create_backbone("flat").name == "flat?scale=1.0"
    assert not has_published_weights("flat")
    for options, message in [
        ({"channels": 1}, "colour"),
        ({"pretrained": True}, "from scratch"),
        ({"weights": Path("x.pth")}, "from scratch"),
    ]:
        with pytest.raises(ModelError, match=message):
            create_backbone("flat", **options)


def test_names_and_what_they_are_come_without_torch() -> None:
    code = (
        "import sys; from hashlens.models.backbones import describe_backbones;"
        "print(*describe_backbones()); assert 'torch' not in sys.modules"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    names = answer.stdout.split()
    expected = ["alexnet", "caffenet", "open_clip:NAME", "resnet9", "smallcnn", "timm:NAME"]
    assert names == [*expected, "vectors"]
    assert all(describe_backbones().values())
    published = [name for name in names if has_published_weights(name)]
    assert published == ["alexnet", "open_clip:NAME", "timm:NAME"]


def test_alexnet_and_caffenet_give_f7(tmp_path: Path) -> None:
    for name, size in (("alexnet", 224), ("caffenet", 227)):
        backbone = create_backbone(name)
        assert backbone.preprocessing.size == size
        with torch.inference_mode():
            features = backbone.module.eval()(torch.randn(1, 3, size, size))
        assert features.shape == (1, 4096)
        assert bool((features >= 0).all())  # after the ReLU of F7


def test_caffenet_pools_before_it_normalises_and_groups() -> None:
    layers = dict(create_backbone("caffenet").module.named_children())
    names = list(layers)
    assert names.index("pool1") < names.index("norm1")
    assert names.index("pool2") < names.index("norm2")
    groups = [layers[f"conv{i}"].groups for i in range(1, 6)]
    assert groups == [1, 2, 1, 2, 2]


def test_caffenet_weights_are_turned_from_blue_first_to_red_first(tmp_path: Path) -> None:
    state = create_backbone("caffenet").module.state_dict()
    state["conv1.weight"] = torch.zeros_like(state["conv1.weight"])
    state["conv1.weight"][:, 0] = 1  # Caffe's first channel is blue
    state["fc8.weight"] = torch.zeros(1000, 4096)
    path = tmp_path / "caffenet.pth"
    torch.save(state, path)
    backbone = create_backbone("caffenet", weights=path)
    first = backbone.module.state_dict()["conv1.weight"]
    assert bool((first[:, 2] == 1).all())
    assert bool((first[:, :2] == 0).all())
    assert (backbone.start.origin, backbone.start.licence) == ("caffenet.pth", "not stated")


def test_mobilenet_weights_state_their_own_padding_and_scaling(weights_dir: Path) -> None:
    path = weights_dir / "mobilenetv2_100_imagenet.safetensors"
    backbone = create_backbone("timm:mobilenetv2_100", weights=path)
    assert backbone.name == "timm:mobilenetv2_100?pad_type=same"
    assert backbone.preprocessing.size == 224
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    assert "Apache-2.0" in backbone.start.licence
    stored = load_file(path)
    held = backbone.module.state_dict()
    assert torch.equal(held["conv_head.weight"], stored["conv_head.weight"].float())
    assert not any(name.startswith("classifier") for name in held)
    rebuilt = create_backbone(backbone.name)
    assert rebuilt.module.state_dict().keys() == held.keys()


def _safetensors(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet10",
            {},
            "known are alexnet, caffenet, open_clip:NAME, resnet9, smallcnn, timm:NAME",
        ),
        ("timm:mobilenet_v99", {}, "timm has no model"),
        ("timm:mobilenetv2_050?no_such=1", {}, "takes the options act_layer.*got no_such"),
        ("timm:mobilenetv2_050?checkpoint_path=/x.pth", {}, "got checkpoint_path"),
        ("timm:mobilenetv2_050?pretrained_cfg_overlay={'file':'x'}", {}, "got pretrained_cfg_"),
        ("timm:mobilenetv2_050?act_layer=['x']", {}, "got act_layer"),
        ("timm:mobilenetv2_050?act_layer=no_such", {}, "could not be built"),
        ("resnet9?depth=3", {}, "takes only \\['width'\\]"),
        ("alexnet?depth=3", {}, "takes no options"),
        ("timm:mobilenetv2_050?size=64", {}, "no option of this name"),
        ("timm", {}, "as in timm:NAME"),
        ("timm:", {}, "as in timm:NAME"),
        ("smallcnn:tiny", {}, "no colon"),
        ("smallcnn?x", {}, "KEY=VALUE"),
        ("resnet9?width=wide", {}, "whole number"),
        ("resnet9?width=True", {}, "whole number"),
        ("smallcnn", {"size": 7}, "8 to 64"),
        ("resnet9", {"size": 8}, "at least 16"),
        ("caffenet", {"size": 128}, "227"),
        ("caffenet", {"pretrained": True}, "--weights"),
        ("alexnet", {"channels": 1}, "colour"),
        ("alexnet", {"size": 32}, "at least 63"),
        ("smallcnn", {"channels": 2}, "1 or 3"),
        ("resnet9", {"pretrained": True}, "from scratch"),
    ],
)
def test_refuses_with_a_reason(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_backbone(name, **options)


def test_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    cut = _safetensors(tmp_path / "cut.safetensors", a=torch.zeros(1000))
    cut.write_bytes(cut.read_bytes()[:500])
    other = _safetensors(tmp_path / "other.safetensors", a=torch.zeros(3))
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    bare = tmp_path / "bare.pth"
    torch.save([1, 2], bare)
    for path, message in [
        (missing, "no weights file"),
        (cut, "not a readable"),
        (other, "do not fit"),
        (text, "not a readable"),
        (bare, "state dict"),
    ]:
        with pytest.raises(ModelError, match=message) as raised:
            create_backbone("alexnet", weights=path)
        assert path.name in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = tmp_path / "trap.pth"
    torch.save({"conv1.weight": Trap()}, path)
    with pytest.raises(ModelError, match="not a readable"):
        create_backbone("caffenet", weights=path)
    assert not (tmp_path / "sprung").exists()
