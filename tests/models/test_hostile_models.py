"""Models that somebody made to do harm: one clear line, without the memory that they ask for."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hashlens import Encoder, HashIndex, ModelError
from hashlens.models.checkpoint import fingerprint, read_config, update_config

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def refused(model: Path) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ModelError) as raised:
        Encoder.load(model, device="cpu" if model.is_dir() else None)
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 1000
    return line


def describe(model: Path, **changes: Any) -> None:
    path = model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_dim": 10**12},
        {"feature_dim": 0},
        {"feature_dim": -1},
        {"feature_dim": 8.5},
        {"radius": -1},
        {"radius": 1e30},
        {"radius": 2.5},
        {"radius": True},
        {"bits": 10**9},
        {"preprocessing": "size"},
        {"classes": 7},
        {"training": [[[[1]]]]},
        {"backbone": "resnet9?width=" + "9" * 5000},
    ],
)
def test_values_out_of_range_are_refused(copy: Path, changes: dict[str, Any]) -> None:
    if changes.get("preprocessing") == "size":
        before = json.loads((copy / "model.json").read_text())["preprocessing"]
        changes = {"preprocessing": {**before, "size": 10**9}}
    describe(copy, **changes)
    assert str(copy) in refused(copy) or "backbone" in changes


def test_json_without_an_end_is_refused(copy: Path, onnx_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    (copy / "model.json").write_text(DEEP)
    assert "JSON" in refused(copy)
    graph = onnx.load(onnx_file)
    graph.metadata_props[0].value = DEEP
    onnx.save(graph, tmp_path / "deep.onnx")
    assert "JSON" in refused(tmp_path / "deep.onnx")


def sign(model: Path, change: Callable[[dict[str, torch.Tensor]], Any], **described: Any) -> None:
    """Change weights and description, and give them the fingerprint that fits."""
    config, weights = read_config(model)
    state = load_file(weights)
    change(state)
    save_file(state, weights)
    config = replace(config, **described)
    printed = {k: v if v.dtype != torch.bfloat16 else v.float() for k, v in state.items()}
    describe(model, **described, fingerprint=fingerprint(printed, config))


def test_weights_of_other_types_are_refused(copy: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["latent.weight"] = state["latent.weight"].bfloat16()

    sign(copy, change)
    assert "bfloat16" in refused(copy)


@pytest.mark.parametrize("shape", [(0, 2**62), (0, 2**62, 2**62), (2**40, 0)])
def test_nothing_times_a_huge_width_is_refused(copy: Path, shape: tuple[int, ...]) -> None:
    _, weights = read_config(copy)
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["extra"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert "weights" in refused(copy)


def test_a_backbone_wider_than_its_weights_takes_no_memory(copy: Path) -> None:
    """In a process that may take 6 GiB of addresses: the network would take 20 terabytes."""
    sign(copy, lambda _: None, backbone="resnet9?width=100000")
    command = (
        "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        f"from hashlens import Encoder; Encoder.load({str(copy)!r}, device='cpu')"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert "do not fit the backbone" in done.stderr.splitlines()[-1]


def test_weights_of_an_onnx_file_in_other_files_are_refused(
    onnx_file: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    graph = onnx.load(onnx_file)
    outside = tmp_path / "outside"
    outside.mkdir()
    path = outside / "model.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "other files" in refused(path)
    graph = onnx.load(onnx_file)
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value="/etc/hostname")
    path.write_bytes(graph.SerializeToString())
    assert "other files" in refused(path)


@pytest.mark.parametrize("place", ["index", "link", "proc"])
def test_the_model_that_an_index_names_is_not_followed_into_it(
    place: str, copy: Path, tmp_path: Path
) -> None:
    from hashlens.cli.opening import load_encoder

    index = tmp_path / "foreign.idx"
    encoder = Encoder.load(copy)
    model = {"index": index / "model", "link": tmp_path / "link", "proc": Path("/proc/self/cwd")}
    HashIndex.create(index, encoder, model=model[place]).close()
    shutil.copytree(copy, index / "model")
    (tmp_path / "link").symlink_to(index / "model")
    with pytest.raises(ModelError, match="not followed"):
        load_encoder(index, None)
    assert load_encoder(index, index / "model").fingerprint == encoder.fingerprint  # if asked to


def test_a_description_of_another_width_is_refused(copy: Path) -> None:
    assert update_config(copy, radius=3).radius == 3
    sign(copy, lambda _: None, feature_dim=17)
    assert "do not fit" in refused(copy)
