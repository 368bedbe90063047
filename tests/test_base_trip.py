"""The base runs where there is neither ``fcntl`` nor ``resource``, as on Windows, nor an extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_base_needs_nothing_of_unix() -> None:
    blocked = ["fcntl", "resource", "pwd", "grp", "termios", "torch", "pyarrow", "fsspec"]
    script = Path(__file__).with_name("base_trip.py")
    command = [sys.executable, str(script), *blocked]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "the trip went well" in result.stdout
