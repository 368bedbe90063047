"""The first hour of three newcomers, by commands alone; ``make trips``: from a new wheel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from image_builders import holiday, picture, write_class_folder

WEIGHTS = "mobilenetv2_100_imagenet.safetensors"
HASHLENS = [sys.executable, "-m", "hashlens"]


def run(*words: object) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([*HASHLENS, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def served(*words: object) -> Iterator[tuple[str, str]]:
    """A command that serves a page: what it says, and its address."""
    command = [*HASHLENS, *map(str, words), "--port", "0"]
    log = Path(str(words[1]) + ".log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if " at http" in line:
                break
        assert " at http" in said, said + log.read_text()
        yield said + log.read_text(), said.rsplit(" ", 1)[1].strip()
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_the_trip_of_a_shop_with_class_folders(tmp_path: Path) -> None:
    photos = write_class_folder(tmp_path / "shop", per_class=20)
    with served("look", photos, "--no-browser") as (said, url):
        assert "learning 3 classes (circle, cross, stripe)" in said
        assert "holds 60 images: 60 added" in said
        found = httpx.post(f"{url}/v1/search", data={"id": 0, "k": 5}, timeout=60).json()
        assert {hit["label"] for hit in found["hits"]} == {"circle"}
        assert httpx.get(url).text.startswith("<!doctype html>")
    with served("look", photos, "--no-browser") as (said, _):
        assert "learning" not in said
        assert "holds 60 images: nothing new" in said


@pytest.mark.slow
def test_the_trip_of_holiday_pictures_whose_disk_moves(tmp_path: Path, weights_dir: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    photos = holiday(tmp_path / "photos", count=40)
    picture("circle", 5, side=96).save(photos / "unsuffixed", "JPEG")
    picture("cross", 6, side=96).save(photos / "2022" / "IMG_1.HEIC", "HEIF")
    with served("look", photos, "--weights", weights_dir / WEIGHTS) as (said, url):
        assert "named by dates" in said
        assert "holds 42 images: 42 added, passed over 2 (.cr2 1, .db 1)" in said
        shown = httpx.get(f"{url}/v1/images", timeout=60).json()["images"]
        assert {image["label"] for image in shown} == {None}
        assert all(image["name"] for image in shown)
    elsewhere = tmp_path / "new disk" / "photos"
    elsewhere.parent.mkdir()
    for name in ("photos", "photos.hashlens"):
        shutil.move(tmp_path / name, elsewhere.parent / name)
    with served("look", elsewhere) as (said, url):
        assert "holds 42 images: 42 moved" in said
        picked = httpx.get(f"{url}/v1/images/0/thumbnail", timeout=60)
        assert picked.headers["content-type"].startswith("image/")
    found = run("search", f"{elsewhere}.hashlens/index", "0", "--json")
    assert str(photos) not in found
    assert str(elsewhere) in found


@pytest.mark.slow
def test_the_trip_of_vectors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 60)
    vectors = rng.normal(size=(3, 16))[kinds] + rng.normal(0, 0.4, (180, 16))
    np.save(tmp_path / "x.npy", vectors.astype(np.float32))
    np.save(tmp_path / "query.npy", vectors[7].astype(np.float32))
    rows = [f"{'abc'[kind]},{i}" for i, kind in enumerate(kinds)]
    (tmp_path / "x.csv").write_text("\n".join(["label,price", *rows]))
    model, index = tmp_path / "model", tmp_path / "x.idx"
    assert "16 bits" in run("train", tmp_path / "x.npy", "--out", model, "--bits", 16)
    assert "added 180" in run("index", "create", index, tmp_path / "x.npy", "--model", model)
    words = ("search", index, "--vector", tmp_path / "query.npy", "--where", "price<50", "--json")
    [answer] = json.loads(run(*words))["results"]
    assert 7 in [hit["id"] for hit in answer["hits"]]
    assert {hit["label"] for hit in answer["hits"]} == {"a"}
    with served("serve", index) as (_, url):
        asked = {"vector": json.dumps(vectors[70].tolist()), "k": 5}
        found = httpx.post(f"{url}/v1/search", data=asked, timeout=60).json()
        assert {hit["label"] for hit in found["hits"]} == {"b"}
