"""Exported files: equal answers, description, damage, versions, int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from hashlens import Encoder, ModelError, open_source, unpack_bits
from hashlens.models import export
from hashlens.models.checkpoint import load_model, save_model, update_config
from hashlens.models.description import read_config
from hashlens.models.encoder import METADATA_KEY
from hashlens.models.export import export_onnx, write_twin


def _noise(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_answers_like_torch_at_every_batch_size(model_dir: Path, onnx_file: Path) -> None:
    model, exported = Encoder.load(model_dir), Encoder.load(onnx_file)
    for n in (1, 2, 7, 200):
        expected, got = model.encode_pixels(_noise(n, 16)), exported.encode_pixels(_noise(n, 16))
        equal = (unpack_bits(expected[0], 20) == unpack_bits(got[0], 20)).mean()
        assert equal >= 0.999
        for index in (1, 2):
            np.testing.assert_allclose(got[index], expected[index], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["smallcnn", "timm:mobilenetv2_050"])
def test_backbones_export(make_model: Callable[..., Path], tmp_path: Path, backbone: str) -> None:
    model = make_model(tmp_path / "model", backbone=backbone, size=32, bits=48)
    report = export_onnx(model, tmp_path / "model.onnx")
    assert report.bits_equal >= 0.999
    assert report.feature_error <= 1e-3
    assert report.n_bytes == (tmp_path / "model.onnx").stat().st_size
    assert report.fingerprint == Encoder.load(model).fingerprint


def test_a_model_without_classes_exports_without_scores(
    make_model: Callable[..., Path], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    model = make_model(tmp_path / "model", classes=())
    export_onnx(model, tmp_path / "model.onnx")
    exported = Encoder.load(tmp_path / "model.onnx")
    assert exported.classes == ()
    (batch,) = exported.encode_batches(pictures)
    assert batch.scores is None
    np.testing.assert_array_equal(batch.codes, Encoder.load(model).encode(pictures)[0])


def test_one_file_with_its_description(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto)
    assert [path.name for path in onnx_file.parent.iterdir()] == [onnx_file.name]
    (entry,) = (prop.value for prop in proto.metadata_props if prop.key == METADATA_KEY)
    described = json.loads(entry)
    assert described["bits"] == 20
    assert described["classes"] == ["cat", "dog", "eel"]
    assert described["format_version"] == 3
    assert described["preprocessing"]["size"] == 16
    assert len(described["fingerprint"]) == 64


def test_int8_has_its_own_fingerprint_and_states_its_loss(model_dir: Path, tmp_path: Path) -> None:
    pixels = _noise(64, 16)
    report = export_onnx(model_dir, tmp_path / "int8.onnx", calibration=pixels)
    model, quantised = Encoder.load(model_dir), Encoder.load(tmp_path / "int8.onnx")
    assert quantised.fingerprint == report.fingerprint != model.fingerprint
    assert report.n_compared == 64
    expected = unpack_bits(model.encode_pixels(pixels)[0], 20)
    got = unpack_bits(quantised.encode_pixels(pixels)[0], 20)
    assert 0.8 < (expected == got).mean() <= 1
    assert report.bits_equal == pytest.approx((expected == got).mean(), abs=0.01)
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds


def _scaled(model: Path, out: Path) -> Path:
    """The same model with features that are centred and of unit length."""
    net, config = load_model(model)
    net.set_feature_scaling(torch.full((16,), 0.1), torch.linspace(0.5, 2, 16))
    save_model(out, net, replace(config, feature_scaling="centred", mode="hds"))
    return out


def test_scaled_features_are_saved_and_exported(model_dir: Path, tmp_path: Path) -> None:
    scaled = Encoder.load(_scaled(model_dir, tmp_path / "scaled"))
    export_onnx(tmp_path / "scaled", tmp_path / "scaled.onnx")
    exported, plain = Encoder.load(tmp_path / "scaled.onnx"), Encoder.load(model_dir)
    assert scaled.fingerprint == exported.fingerprint != plain.fingerprint
    assert exported.mode == scaled.mode == "hds"
    pixels = _noise(50, 16)
    raw, one, two = (encoder.encode_pixels(pixels) for encoder in (plain, scaled, exported))
    wanted = (raw.features - 0.1) * np.linspace(0.5, 2, 16)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(one.features, wanted, atol=1e-5)
    np.testing.assert_allclose(two.features, wanted, atol=1e-4)
    np.testing.assert_array_equal(one.codes, raw.codes)
    np.testing.assert_array_equal(one.scores, raw.scores)


def test_int8_scales_features_in_float(model_dir: Path, tmp_path: Path) -> None:
    model = _scaled(model_dir, tmp_path / "scaled")
    pixels = _noise(64, 16)
    export_onnx(model, tmp_path / "int8.onnx", calibration=pixels)
    features = Encoder.load(tmp_path / "int8.onnx").encode_pixels(pixels).features
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_int8_without_images_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="calibration"):
        export_onnx(model_dir, tmp_path / "int8.onnx", calibration=_noise(0, 16))
    assert not list(tmp_path.iterdir())


def test_an_export_that_answers_differently_is_not_written(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_compare", lambda *_: (0.998, 1e-6))
    with pytest.raises(ModelError, match="nothing was written"):
        export_onnx(model_dir, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "_compare", lambda *_: (1.0, float("nan")))
    with pytest.raises(ModelError, match="nothing was written"):
        export_onnx(model_dir, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_cut_file_is_refused(onnx_file: Path, tmp_path: Path, share: float) -> None:
    data = onnx_file.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelError, match=r"cut\.onnx") as raised:
        Encoder.load(path)
    assert "\n" not in str(raised.value)


def _foreign(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def test_a_foreign_file_is_refused(tmp_path: Path, onnx_file: Path) -> None:
    path = tmp_path / "foreign.onnx"
    _foreign(path)
    with pytest.raises(ModelError, match="not from Hashlens"):
        Encoder.load(path)
    proto = onnx.load(path)
    proto.metadata_props.extend(onnx.load(onnx_file).metadata_props)
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="does not fit its description"):
        Encoder.load(path)
    path.write_text("text named .onnx")
    with pytest.raises(ModelError, match="cannot read it"):
        Encoder.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 4}, "upgrade"),
        ({"format": "x"}, "not a Hashlens model"),
        ({"bits": 21}, "does not fit its description"),
    ],
)
def test_another_version_is_refused(
    onnx_file: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    proto = onnx.load(onnx_file)
    for prop in proto.metadata_props:
        if prop.key == METADATA_KEY:
            prop.value = json.dumps({**json.loads(prop.value), **changes})
    path = tmp_path / "changed.onnx"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=message) as raised:
        Encoder.load(path)
    assert "changed.onnx" in str(raised.value)


def _with_twin(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model, with the twin that seven noise images allow, however long it takes."""
    monkeypatch.setattr(export, "_SLOWER", np.inf)
    folder.mkdir()
    for place, pixels in enumerate(_noise(7, 16)):
        Image.fromarray(pixels).save(folder / f"{place}.png")
    assert "twin" in write_twin(model, open_source(str(folder)))
    return next(model.glob("twin-*.onnx"))


def test_a_twin_stands_for_its_model_until_it_does_not_fit(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    assert Encoder.load(model).runtime == "torch"
    twin = _with_twin(model, tmp_path / "noise", monkeypatch)
    update_config(model, radius=7)
    found, plain = Encoder.load(model), Encoder.load(model, device="cpu")
    assert (found.runtime, plain.runtime) == ("onnx", "torch")
    assert found.config == plain.config
    assert found.radius == 7
    pixels = _noise(7, 16)
    np.testing.assert_array_equal(found.encode_pixels(pixels)[0], plain.encode_pixels(pixels)[0])
    monkeypatch.setenv("HASHLENS_RUNTIME", "torch")
    assert Encoder.load(model).runtime == "torch"
    monkeypatch.setenv("HASHLENS_RUNTIME", "keras")
    with pytest.raises(ModelError, match="expected onnx or torch"):
        Encoder.load(model)
    monkeypatch.delenv("HASHLENS_RUNTIME")
    whole = twin.read_bytes()
    for damaged in (whole[:-1], whole[:100] + b"!" + whole[101:], b""):
        twin.write_bytes(damaged)
        assert Encoder.load(model).runtime == "torch"
    twin.unlink()
    assert Encoder.load(model).runtime == "torch"
    monkeypatch.setenv("HASHLENS_RUNTIME", "onnx")
    with pytest.raises(ModelError, match="no ONNX twin"):
        Encoder.load(model)


def test_another_model_in_the_folder_drops_the_twin(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    twin = _with_twin(model, tmp_path / "noise", monkeypatch)
    make_model(model, seed=1)
    assert not twin.exists()
    assert Encoder.load(model).runtime == "torch"


def test_no_twin_where_bits_differ(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(export, "_compare", lambda *_: (0.99, 0.0))
    (tmp_path / "noise").mkdir()
    Image.fromarray(_noise(1, 16)[0]).save(tmp_path / "noise" / "0.png")
    assert write_twin(model, open_source(str(tmp_path / "noise"))).startswith("no ONNX twin")
    assert not list(model.glob("*.onnx"))


def test_other_programs_read_the_description_in_plain_keys(model_dir: Path, tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(model_dir, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    found = session.get_modelmeta().custom_metadata_map
    config, _ = read_config(model_dir)
    assert found["bits"] == str(config.bits)
    assert found["backbone"] == config.backbone
    assert found["fingerprint"] == config.fingerprint
