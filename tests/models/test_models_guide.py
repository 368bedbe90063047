"""The guide's Python example prints what the guide says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from hashlens.models.backbones import describe_backbones

ROOT = Path(__file__).parents[2]


def test_the_encoding_example(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "guides" / "models.md").read_text()
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 1
    monkeypatch.chdir(ROOT)
    for code, expected in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        assert printed.getvalue() == expected


def test_the_table_has_every_backbone() -> None:
    page = (ROOT / "docs" / "guides" / "models.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_]+(?::NAME)?)` \|", page, re.MULTILINE)
    assert sorted(rows) == list(describe_backbones())
