"""Files and Python names that the documentation mentions exist."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FILE = re.compile(r"(?<![\w/.])(?:src|tests|docs|benchmarks|deploy)/[\w./-]*\w/?(?![\w*])")


def _imports(page: Path) -> list[tuple[str, str]]:
    """``(module, name)`` of each import from hashlens in the page's blocks of Python."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hashlens"):
                found += [(str(node.module), alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    assert [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imported_names_exist(page: Path) -> None:
    missing = [
        (module, name)
        for module, name in _imports(page)
        if not hasattr(import_module(module), name)
    ]
    assert missing == []


def test_the_check_finds_files() -> None:
    assert FILE.findall("see `src/hashlens/no.py`, or tests/data/") == [
        "src/hashlens/no.py",
        "tests/data/",
    ]
