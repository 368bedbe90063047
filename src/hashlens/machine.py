"""How much memory this process has."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST = 1 << 30
_PAD = 1 << 26


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed blocks of up to 1 GiB instead of unmapping them.

    By default every tensor above 32 MiB, and at first above 128 KiB, is mapped anew and unmapped
    when freed, so each layer of a network touches pages that the kernel must first clear. On a
    processor that can cost more than the arithmetic. The price is that the process stays at its
    highest memory use.

    Does nothing with another C library, or where a ``MALLOC_...`` variable of the environment
    already says what to do.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    # Older versions refuse a threshold above 32 MiB: then nothing at all is mapped.
    large = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return bool(large and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, _PAD))


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
