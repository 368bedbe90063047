"""Data sets of a hub as sources, from a folder, so that nothing is downloaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_tables import assert_same_pictures, write_table

from hashlens import ImageError, SourceError, open_source
from hashlens.data.opening import load_image
from image_builders import CLASSES, write_class_folder


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that ``datasets.load_dataset`` opens by its folder, with two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("train", "test"):
        write_class_folder(tmp_path / "shapes" / part, 3)
    return tmp_path / "shapes"


def test_a_hub_data_set_of_image_files(hub_folder: Path) -> None:
    source = open_source(f"hub:{hub_folder}#train")
    assert source.classes == CLASSES
    assert sorted(source.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    assert source.uris[4] == f"hub:{hub_folder}#train#4"
    assert np.array_equal(np.asarray(source.load(4)), np.asarray(load_image(source.uris[4])))
    assert len(pickle.loads(pickle.dumps(source))) == 9
    with pytest.raises(SourceError, match=r"several splits; name one: .*#train or .*#test"):
        open_source(f"hub:{hub_folder}")
    with pytest.raises(SourceError, match="could not be loaded"):
        open_source(f"hub:{hub_folder}#dev")
    with pytest.raises(ImageError, match="expected a row from 0 to 8, got 9"):
        load_image(f"hub:{hub_folder}#train#9")


def test_a_hub_data_set_of_tables(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    table = pq.read_table(write_table(tmp_path / "x.parquet", [0, 1, 2] * 3, list(CLASSES)))
    info = table.schema.metadata[b"huggingface"].replace(b'"image"', b'"img"')
    table = table.rename_columns(["img", "label"]).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, hub_folder / "train.parquet")
    source = open_source(f"hub:{hub_folder}")
    assert source.classes == CLASSES
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert_same_pictures(source)


def test_a_hub_data_set_without_images_is_refused(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    (hub_folder / "train.csv").write_text("text,label\nhello,1\n")
    with pytest.raises(SourceError, match="expected a column 'image', got text, label"):
        open_source(f"hub:{hub_folder}")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="hub:some-one/some-images: could not be loaded") as error:
        open_source("some-one/some-images")
    assert str(error.value).startswith("some-one/some-images: no such file or folder; ")
    assert "\n" not in str(error.value)


class _Liar(BaseHTTPRequestHandler):
    """Answers as the last part of a data set's name says."""

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        asked = next((name for name in (*ANSWERS, *FILES) if name in path), "fine")
        status, body, headers = ANSWERS.get(asked, (200, b"", {}))
        if asked in FILES and path.endswith("/train.parquet"):
            status, body, headers = FILES[asked]
            headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{asked}"', **headers}
        elif asked in FILES and path.startswith("/api/"):
            file = {"type": "file", "oid": "b" * 40, "size": 900, "path": "train.parquet"}
            whole = {"id": asked, "sha": "a" * 40, "siblings": [{"rfilename": "train.parquet"}]}
            listed = "/tree/" in path or "/paths-info/" in path
            status, body, headers = 200, json.dumps([file] if listed else whole).encode(), COMMIT
        elif asked in FILES:
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value or self.path)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


COMMIT = {"X-Repo-Commit": "a" * 40, "ETag": '"b"', "Content-Type": "application/json"}
ANSWERS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "missing": (404, b"", {"X-Error-Code": "RepoNotFound"}),
    "forbidden": (401, b"", {}),
    "page": (200, b"<html>Sign in</html>", {}),
    "in-circles": (302, b"", {"Location": ""}),
    "deep": (200, b"[" * 200_000, COMMIT),
    "null": (200, b'{"siblings": null, "sha": null, "id": null}', COMMIT),
}


FILES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "half-a-file": (200, b"PAR1" + bytes(500), {"Content-Length": "900"}),
    "short-file": (200, b"PAR1" + bytes(500), {}),
    "sign-in": (200, b"<html>Sign in</html>", {}),
    "no-bytes": (200, b"", {}),
    "huge-file": (200, b"PAR1", {"Content-Length": str(10**15), "X-Linked-Size": str(10**15)}),
    "round-and-round": (302, b"", {"Location": ""}),
    "file-of-this-machine": (302, b"", {"Location": "file:///etc/passwd"}),
    "file-gone": (404, b"", {"X-Error-Code": "EntryNotFound"}),
    "other-table": (200, b"a,b\n1,2\n", {}),
}
"""Answers to the question for the one file of a data set whose list of files is right."""


def test_a_hub_that_lies_is_one_line_each(tmp_path: Path) -> None:
    names = [f"shop/{name}" for name in (*ANSWERS, *FILES)]
    script = f"""
from hashlens import SourceError, open_source
for name in {names!r}:
    try:
        open_source(f"hub:{{name}}#train")
    except SourceError as error:
        assert len(str(error).splitlines()) == 1, error
        print(error)
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Liar) as server:
        Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        around = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=around, capture_output=True, text=True)
        server.shutdown()
    assert run.returncode == 0, run.stderr
    assert [line.split(":")[1] for line in run.stdout.splitlines()] == [f"{n}#train" for n in names]
    assert "Retry" not in run.stderr
