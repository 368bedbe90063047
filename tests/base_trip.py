"""A trip through what the base installation does: index, search, change, look after an index.

A script of its own: a test runs it where modules of Unix and of the extras cannot be imported,
``.ci/lowest`` at the lowest versions that are allowed. ``base_trip.py train`` also trains.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = Path(__file__).parent / "data" / "models" / "format-3.onnx"
COMMAND = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from hashlens.cli.main import main
main()
"""


def hashlens(blocked: list[str], *words: object) -> str:
    """What a command prints; it must succeed."""
    code = COMMAND.format(blocked=blocked)
    command = [sys.executable, "-c", code, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"hashlens {' '.join(map(str, words))}\n{result.stdout}{result.stderr}")
    return result.stdout


def travel(folder: Path, blocked: list[str]) -> None:
    """Make pictures, index, search, sync, remove, compact and verify."""
    rng = np.random.default_rng(0)
    photos, index = folder / "photos", folder / "photos.idx"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{i}.png")
    (folder / "prices.csv").write_text("file,price\ncat/1.png,5\n", encoding="utf-8")
    words = ("index", "create", index, photos, "--model", MODEL, "--metadata")
    assert "added 12, skipped 0" in hashlens(blocked, *words, folder / "prices.csv")
    query = photos / "cat" / "1.png"
    for mode in ("bcs", "hds", "es"):
        words = ("search", index, query, "-k", 3, "--mode", mode, "--where", "price<9", "--json")
        assert str(query) in hashlens(blocked, *words).replace("\\\\", "\\")
    (photos / "dog" / "5.png").unlink()
    assert "1 removed" in hashlens(blocked, "index", "sync", index, photos)
    hashlens(blocked, "index", "update", index, 0, "--label", "lion")
    assert "lion" in hashlens(blocked, "index", "info", index, "--json")
    hashlens(blocked, "index", "duplicates", index)
    hashlens(blocked, "index", "compact", index)
    assert "intact, 11 images" in hashlens(blocked, "index", "verify", index)


if __name__ == "__main__":
    extras, blocked = [w for w in sys.argv[1:] if w == "train"], sys.argv[1:]
    blocked = [word for word in blocked if word != "train"]
    with tempfile.TemporaryDirectory() as name:
        travel(Path(name), blocked)
        if extras:
            words = ("train", "digits#test", "--epochs", 1, "--out", Path(name) / "model")
            assert "best epoch 1" in hashlens(blocked, *words)
    packages = ["numpy", "numba", "onnxruntime", "pillow", "typer", "filelock"]
    found = ", ".join(f"{p} {version(p)}" for p in packages + ["torch"] * bool(extras))
    print(f"Python {platform.python_version()}, {found}: the trip went well")
