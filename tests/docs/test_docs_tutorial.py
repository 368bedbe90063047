"""The tutorial's notebook runs from top to bottom, and the site has every page."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    """As in a notebook, the value of a cell's last line is shown: hits as pictures."""
    pytest.importorskip("torch", reason="needs the extra 'train'")
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text())
    names: dict[str, object] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        *first, last = ast.parse("".join(cell["source"])).body
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(first, []), "tutorial.ipynb", "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), "tutorial.ipynb", "eval"), names))
        else:
            exec(compile(ast.Module([*first, last], []), "tutorial.ipynb", "exec"), names)
    pictures = [one._repr_html_() for one in shown if hasattr(one, "_repr_html_")]
    assert any(page.count("<img") == 8 for page in pictures)


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r"[\w/-]+\.md$", (DOCS.parent / "mkdocs.yml").read_text(), re.M))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
