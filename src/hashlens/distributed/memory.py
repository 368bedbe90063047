"""How much memory this process has had."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """Most bytes of memory that this process has had at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
