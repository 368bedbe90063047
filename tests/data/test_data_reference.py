"""What docs/reference/sources.md says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hashlens.data.folders import SUFFIXES
from hashlens.data.image import MAX_PIXELS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "sources.md").read_text()


def test_the_examples_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for example in examples:
        exec(compile(example, "sources.md", "exec"), {})
    said = re.findall(r"print.*#\s(\d.*)", "".join(examples))
    assert len(said) == 2
    assert capsys.readouterr().out.splitlines() == said


def test_limits_and_suffixes_are_those_of_the_code() -> None:
    assert f"{MAX_PIXELS:,} pixels" in PAGE
    listed = re.search(r"by their suffix: `([^`]*)`", PAGE)
    assert listed is not None
    assert set(listed[1].split()) == SUFFIXES
