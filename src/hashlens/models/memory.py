"""Memory that a network frees stays with the process, for the next layer to use."""

from __future__ import annotations

import ctypes
import os
import sys

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

    Returns
    -------
    bool
        Whether the allocator was told.
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
