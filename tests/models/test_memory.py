"""Freed memory stays with the process, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_RESIDENT = """
import sys
import numpy as np
from hashlens.machine import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == "keep" else False
block = np.ones(200 << 20, dtype=np.uint8)
del block
resident = int(open("/proc/self/statm").read().split()[1]) * 4096
print(told, resident >> 20)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library has another allocator"
)


def _run(how: str, **environment: str) -> tuple[bool, int]:
    """Whether the allocator was told, and MiB resident after 200 MiB were freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    answer = subprocess.run(
        [sys.executable, "-c", _RESIDENT, how],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told, resident = answer.stdout.split()
    return told == "True", int(resident)


def test_freed_memory_is_kept() -> None:
    told, kept = _run("keep")
    _, given_back = _run("leave")
    assert told
    assert kept - given_back > 150


def test_the_environment_wins() -> None:
    told, resident = _run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not told
    assert resident < 200
