"""Push and pull against a hub of our own on the loopback, through huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from hashlens import Encoder, ModelError
from hashlens.cli.main import app
from hashlens.models.checkpoint import load_model, read_config
from hashlens.models.hub import pull_model, push_model
from image_builders import write_class_folder

REPO = "me/codes"


class Hub(BaseHTTPRequestHandler):
    """The few routes that a push and a pull use; files live in ``server.files``."""

    server: HubServer

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://127.0.0.1:{self.server.server_port}/{REPO}"
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._json({"url": address})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                {
                    "files": [
                        {"path": name, "uploadMode": "regular", "shouldIgnore": False}
                        for name in names
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            self._json({"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer(b"", 404)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" not in self.path or name not in self.server.files:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        content = self.server.files[name]
        self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    files: dict[str, bytes]
    created: list[dict[str, object]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", "hf_stub")
    server = HubServer(("127.0.0.1", 0), Hub)
    server.files, server.created = {}, []
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _address(hub: HubServer) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_push_then_pull(hub: HubServer, model_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model_dir, tmp_path / "source"))
    (source / "README.md").write_text("# card")
    (source / "training-state.pt").write_bytes(b"stays here")
    runner = CliRunner()
    pushed = runner.invoke(app, ["push", str(source), REPO, "--endpoint", _address(hub)])
    assert pushed.exit_code == 0, pushed.output
    assert "/commit/" in pushed.stdout
    again = runner.invoke(app, ["push", str(source), REPO, "--json", "--endpoint", _address(hub)])
    assert json.loads(again.stdout)["repo"] == REPO
    assert "/commit/" in json.loads(again.stdout)["url"]
    weights = read_config(source)[1].name
    assert set(hub.files) == {"model.json", "README.md", weights}
    assert hub.created[0]["name"] == "codes"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"

    hub.files["extra.pkl"] = pickle.dumps("never fetched")
    out = tmp_path / "models" / "pulled"
    arguments = ["pull", REPO, "--out", str(out), "--endpoint", _address(hub)]
    pulled = runner.invoke(app, [*arguments, "--json"])
    assert pulled.exit_code == 0, pulled.output
    fingerprint = Encoder.load(model_dir).fingerprint
    assert json.loads(pulled.stdout) == {
        "out": str(out), "repo": REPO, "bits": 20, "fingerprint": fingerprint
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {"model.json", "README.md", weights}
    assert [path.name for path in out.parent.iterdir()] == ["pulled"]
    assert Encoder.load(out).fingerprint == Encoder.load(source).fingerprint


@pytest.mark.parametrize("damage", ["cut", "missing", "foreign", "pickle", "no model"])
def test_a_bad_repository_leaves_the_model_that_is_there(
    hub: HubServer, model_dir: Path, tmp_path: Path, damage: str
) -> None:
    push_model(model_dir, REPO, endpoint=_address(hub))
    out = Path(shutil.copytree(model_dir, tmp_path / "model"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    weights = read_config(model_dir)[1].name
    if damage == "cut":
        hub.files[weights] = hub.files[weights][:-100]
    elif damage == "missing":
        del hub.files[weights]
    elif damage == "foreign":
        hub.files["model.json"] = b"{}"
    elif damage == "pickle":
        described = json.loads(hub.files["model.json"])
        hub.files["model.json"] = json.dumps({**described, "weights": "model.pkl"}).encode()
        hub.files["model.pkl"] = pickle.dumps("no")
    else:
        hub.files.clear()
    with pytest.raises(ModelError) as raised:
        pull_model(REPO, out, endpoint=_address(hub))
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_pulling_over_another_model_replaces_it(
    hub: HubServer, model_dir: Path, tmp_path: Path, make_model: object
) -> None:
    push_model(model_dir, REPO, endpoint=_address(hub))
    out = make_model(tmp_path / "model", seed=5)  # type: ignore[operator]
    pull_model(REPO, out, endpoint=_address(hub))
    assert load_model(out)[1] == load_model(model_dir)[1]
    assert len(list(out.glob("weights-*"))) == 1


def test_refusals_are_one_line(hub: HubServer, model_dir: Path, tmp_path: Path) -> None:
    nowhere = ["--endpoint", "http://127.0.0.1:9"]
    for arguments, message in (
        (["push", str(model_dir), REPO, *nowhere], "could not be uploaded"),
        (["pull", "not a name!", "--out", str(tmp_path / "x"), *nowhere], "not a name!"),
        (["pull", REPO, "--out", str(tmp_path / "x"), "--endpoint", _address(hub)], "downloaded"),
        (["push", str(tmp_path / "none"), REPO, *nowhere], "no such directory"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "shop/photos", "--out", "{}/m"], "no such file or folder; hub:shop/photos:"),
        (["train", "hub:shop/photos#train", "--out", "{}/m"], "check the name, the split"),
        (["train", "{}/c", "--backbone", "timm:resnet18", "--freeze-backbone", "--out", "{}/m"],
         "download model.safetensors of https://huggingface.co/timm/resnet18"),
        (["pull", REPO, "--out", "{}/m"], "me/codes could not be downloaded"),
    ],
)  # fmt: skip
def test_a_hub_that_does_not_answer_is_asked_once(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    write_class_folder(tmp_path / "c", per_class=4)
    command = [sys.executable, "-m", "hashlens", *(a.format(tmp_path) for a in arguments)]
    around = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(command, env=around, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Retry" not in run.stderr
    (last,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert words in last


def test_a_model_is_loaded_by_its_name(hub: HubServer, model_dir: Path, tmp_path: Path) -> None:
    """From the hub, then from the cache while the hub does not answer; without torch for a twin."""
    push_model(model_dir, REPO, endpoint=_address(hub))
    script = "from hashlens import Encoder; print(Encoder.load('hub:me/codes').fingerprint)"
    fingerprint = load_model(model_dir)[1].fingerprint
    for address in (_address(hub), "http://127.0.0.1:9"):
        around = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=around, capture_output=True, text=True)
        assert run.stdout.strip() == fingerprint, run.stderr
        assert "Retry" not in run.stderr
    script = script.replace("me/codes", "me/other")
    run = subprocess.run([sys.executable, "-c", script], env=around, capture_output=True, text=True)
    assert "hub:me/other could not be downloaded" in run.stderr.splitlines()[-1]
