"""How much memory this process has."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Most bytes of memory that this process has had at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def own_memory() -> int:
    """Bytes of memory that this process has to itself, without files that are mapped.

    Where the system does not tell, as many as it has had at most.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_memory()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])
