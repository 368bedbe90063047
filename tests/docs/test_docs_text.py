"""The guide on text: its example over vectors runs, and prints what the guide says.

What it says of open_clip is in tests/models/test_open_clip.py and tests/cli/test_cli_text.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "text.md"


def test_the_guide_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = GUIDE.read_text(encoding="utf-8")
    block, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, str(GUIDE), "exec"), {})
    said = re.findall(r"print\(.*\) +# (.*)", block)
    assert len(said) == 2
    assert capsys.readouterr().out.splitlines() == said
    for share in said:  # the text speaks of the same figures
        assert f"{share} of the nearest" in " ".join(page.split()) or f"{share} are right" in page
