"""The Python shown in the guide runs, and prints what the guide says."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluate.md"


def test_python_of_the_guide_prints_what_it_says(capsys):
    text = GUIDE.read_text(encoding="utf-8")
    *_, block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, str(GUIDE), "exec"), {})
    said = re.findall(r"print\(.*\)  # (.*)", block)
    assert len(said) == 2
    assert capsys.readouterr().out.splitlines() == said
