"""The guide's Ray Train program, run as it is there: two processes train one model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "distributed.md"


@pytest.mark.slow
def test_the_guides_program_trains_with_two_processes(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
        if "TorchTrainer" in block
    )
    for shown, here in (
        ("photos/", "digits#train"),
        ("/shared/model", str(tmp_path / "model")),
        ("/shared/runs", str(tmp_path / "runs")),
        ("num_workers=8, use_gpu=True", "num_workers=2"),
        ("{}", '{"epochs": 1, "bits": 24}'),
    ):
        assert shown in program
        program = program.replace(shown, here)
    exec(compile(program, str(GUIDE), "exec"), {"__name__": "program"})

    from hashlens import Encoder, open_source

    encoder = Encoder.load(tmp_path / "model")
    codes, _ = encoder.encode(open_source("digits#test").uris[:5])
    assert codes.shape == (5, 3)
