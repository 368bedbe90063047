"""An exported model encodes, indexes and searches where only the base dependencies are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hashlens import open_source
from hashlens.models.export import write_twin

# Everything that the extras bring. A module set to None cannot be imported.
_BLOCKED = [
    *("torch", "torchvision", "timm", "lightning", "tensorboard", "datasets", "safetensors"),
    *("onnx", "onnxscript", "sklearn", "scipy", "matplotlib", "pyarrow", "huggingface_hub"),
    *("fastapi", "uvicorn", "prometheus_client", "ray", "faiss", "usearch", "pandas"),
]

_RUN = """
import json, sys
for name in {blocked!r}:
    sys.modules[name] = None
{body}
"""


def _run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = _RUN.format(blocked=_BLOCKED, body=body)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )


def test_a_blocked_module_is_blocked() -> None:
    """The test below would prove nothing if the block did not hold."""
    assert "torch" in _run("import torch").stderr


def test_encode_index_and_search(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    body = """
from pathlib import Path
from hashlens import Encoder, HashIndex
model, photos, place = sys.argv[1:]
encoder = Encoder.load(model)
images = sorted(str(path) for path in Path(photos).rglob("*.png"))
codes, features = encoder.encode(images)
index = HashIndex.create(place, encoder)
report = index.add(images, labels=[Path(image).parent.name for image in images])
answers = {mode: index.search(images[4], k=3, mode=mode) for mode in ("bcs", "hds", "es")}
print(json.dumps({
    "shapes": [codes.shape, features.shape],
    "added": len(report.ids),
    "first": {mode: [hits[0].uri, hits[0].label] for mode, hits in answers.items()},
    "query": images[4],
}))
"""
    result = _run(body, str(onnx_file), str(photos), str(tmp_path / "photos.idx"))
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["shapes"] == [[9, 3], [9, 16]]
    assert answer["added"] == 9
    query = answer["query"]
    for mode in ("hds", "es"):
        assert answer["first"][mode] == [query, Path(query).parent.name]


def test_the_command_line(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    body = """
from hashlens.cli.main import main
sys.argv[0] = "hashlens"
main()
"""
    index = str(tmp_path / "photos.idx")
    for arguments in (
        ["index", "create", index, "--model", str(onnx_file)],
        ["index", "add", index, str(photos)],
    ):
        result = _run(body, *arguments)
        assert result.returncode == 0, result.stderr
    query = str(next(photos.rglob("4.png")))
    result = _run(body, "search", index, query, "-k", "2", "--mode", "es", "--json")
    assert result.returncode == 0, result.stderr
    assert Path(query).name in result.stdout
    refused = _run(body, "train", str(photos), "--out", str(tmp_path / "model"))
    assert refused.returncode == 1
    assert "hashlens[train]" in refused.stderr


def test_a_folder_with_its_twin_needs_neither_torch_nor_numba(
    make_model: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    told = write_twin(model, open_source(str(photos)))
    assert "bits equal on 9 images" in told
    body = """
from hashlens.cli.main import app
app(standalone_mode=False)
print(sorted({"torch", "numba"} & {name for name in sys.modules if sys.modules[name]}))
"""
    index, query = str(tmp_path / "photos.idx"), str(next(photos.rglob("4.png")))
    for arguments in (
        ["index", "create", index, str(photos), "--model", str(model)],
        ["search", index, query, "-k", "2"],
        ["search", index, query, "--mode", "hds"],
        ["search", index, query, "--mode", "es"],
        ["search", index, "3"],
    ):
        result = _run(body, *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "[]"
        told = "encoding with ONNX Runtime; HASHLENS_RUNTIME=torch takes PyTorch"
        assert (told in result.stderr) == (arguments[-1] != "3")


def test_onnx_runtime_reports_to_nobody(onnx_file: Path, tmp_path: Path) -> None:
    """Its wheels keep a device id and events to send in the user's cache, unless switched off."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    body = "import sys; from hashlens import Encoder; Encoder.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", body, str(onnx_file)], env=environment | home, check=True)
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


def test_a_model_directory_says_what_is_missing(model_dir: Path) -> None:
    result = _run(
        "from hashlens import Encoder, HashlensError\n"
        "try: Encoder.load(sys.argv[1])\n"
        "except HashlensError as error: print(error)",
        str(model_dir),
    )
    assert "hashlens[train]" in result.stdout
    assert ".onnx" in result.stdout
