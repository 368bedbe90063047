"""The files of a release: links that work on a package index, metadata, what is inside."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "deploy"))

import release  # noqa: E402


def test_links_of_a_readme_are_made_whole() -> None:
    text = "![a](docs/x.png) [b](docs/y.md#z) [c](https://example.org) [d](#part)"
    assert release.whole_links(text, "https://host/hashlens/", "0.2.0") == (
        "![a](https://host/hashlens/raw/v0.2.0/docs/x.png) "
        "[b](https://host/hashlens/blob/v0.2.0/docs/y.md#z) [c](https://example.org) [d](#part)"
    )


def test_a_release_needs_its_version_and_a_dated_section() -> None:
    with pytest.raises(SystemExit, match=r"expected version = .99\.0\.0"):
        release.check("99.0.0")


def test_a_wheel_is_built_from_the_last_commit(tmp_path: Path) -> None:
    if which("uv") is None or subprocess.run(["git", "rev-parse"], cwd=ROOT).returncode:
        pytest.skip("needs uv and a git checkout")
    release.build("0.1.0", "https://host/hashlens", tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    assert list(tmp_path.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as held:
        names = held.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        message = message_from_bytes(held.read(metadata))
    assert "hashlens/service/web/index.html" in names
    assert "hashlens/py.typed" in names
    assert message["Project-URL"] == "Repository, https://host/hashlens"
    assert message["Author"] == "The Hashlens authors"
    body = message.get_payload()
    assert isinstance(body, str)
    assert "](docs/" not in body
    assert "https://host/hashlens/blob/v0.1.0/docs/guides/training.md" in body
