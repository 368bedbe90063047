"""The picture in docs/architecture.md names the folders and files that exist, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "hashlens"


def _named() -> set[str]:
    """Paths below the package: folders end in a slash."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = re.findall(r"```text\nsrc/hashlens/\n(.*?)```", page, re.DOTALL)
    named: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        if line.startswith("    "):
            named |= {f"{folder}{name}.py" for name in line.split()}
        else:
            folder = line.split()[0]
            named.add(folder)
    return named


def _existing() -> set[str]:
    files = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent == PACKAGE
    }
    folders = {
        f"{path.relative_to(PACKAGE)}/"
        for path in PACKAGE.rglob("*")
        if path.is_dir() and any(entry.is_file() for entry in path.iterdir())
    }
    return files | {name for name in folders if "__pycache__" not in name}


def test_the_picture_is_current() -> None:
    missing, gone = _existing() - _named(), _named() - _existing()
    assert not missing, f"docs/architecture.md: add {sorted(missing)}"
    assert not gone, f"docs/architecture.md: remove {sorted(gone)}, which do not exist"
