"""Imports run one way, and importing hashlens stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hashlens

ROOT = Path(__file__).parents[1] / "src" / "hashlens"

# What each part may import, besides itself. `types` is the floor, `cli` the roof.
_FLOOR = {"errors", "types", "files", "machine"}
_LEARNING = _FLOOR | {"codes", "data", "models", "report"}
_LIBRARY = _LEARNING | {"training", "index", "baselines", "evaluation"}
_PRODUCT = _LIBRARY | {"workflows", "paper"}
ALLOWED = {
    "errors": set(),
    "types": {"errors", "files"},
    "files": {"errors"},
    "machine": {"errors", "types"},
    "codes": _FLOOR,
    "index": _FLOOR | {"codes", "data"},  # data: the pictures of hits in a notebook
    "baselines": _FLOOR | {"codes"},
    "evaluation": _FLOOR | {"codes", "report"},
    "report": _FLOOR,
    "data": _FLOOR,
    "models": _FLOOR | {"codes", "data"},
    "training": _LEARNING | {"evaluation", "baselines"},
    "workflows": _LIBRARY,
    "paper": _LIBRARY | {"workflows", "hasher"},
    "hasher": _LIBRARY,
    "service": _LIBRARY,
    "distributed": _LIBRARY | {"service"},
    "bench": _PRODUCT | {"distributed", "hasher"},
    "cli": _PRODUCT | {"bench", "service", "distributed"},
    "__main__": {"cli"},
}


def _imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hashlens":
            parts.update(alias.name for alias in node.names)
            continue
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        parts.update(name.split(".")[1] for name in names if name.startswith("hashlens."))
    return parts - {"__version__"}


def _modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert _imported_parts(path) <= ALLOWED[part] | {part}


def test_public_names_are_what_a_type_checker_sees() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hashlens.")
        for alias in node.names
    }
    assert seen.keys() | {"__version__"} == set(hashlens.__all__)
    for name, module in seen.items():
        assert getattr(hashlens, name) is getattr(import_module(str(module)), name)


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


def test_importing_hashlens_is_light() -> None:
    loaded = _loaded_by("import hashlens")
    assert "hashlens" in loaded
    assert loaded.isdisjoint({"torch", "numba", "numpy", "PIL", "onnxruntime"})


def test_importing_the_command_line_is_light() -> None:
    loaded = _loaded_by("import hashlens.cli.main")
    heavy = {"torch", "numba", "lightning", "onnxruntime", "fastapi", "ray", "numpy", "PIL"}
    assert loaded.isdisjoint(heavy | {"filelock", "rich.console"})


def test_importing_the_index_and_the_baselines_compiles_nothing() -> None:
    loaded = _loaded_by("import hashlens.index.hash_index, hashlens.baselines")
    assert loaded.isdisjoint({"numba", "hashlens.baselines.ksh", "hashlens.baselines.itq"})
