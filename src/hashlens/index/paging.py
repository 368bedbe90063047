"""Reading many places of a memory-mapped file at once."""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from hashlens.protocols import Ids


def will_need(array: NDArray[Any], rows: Ids) -> None:
    """Tell the system that these rows are about to be read, so that it fetches them side by side.

    Touching a row that is not in memory waits for the disk, one row after the other; a disk is
    fastest when asked for many at a time. Does nothing for arrays that are not contiguous or on
    systems without ``madvise``; harmless for arrays that are no files.

    Parameters
    ----------
    array : ndarray of shape (n, d)
        Rows that lie one after the other.
    rows : ndarray of shape (m,), int64
        Which of them; ascending order is fastest.
    """
    advise = _madvise()
    if advise is None or not array.flags.c_contiguous:
        return
    length = array.strides[0]
    starts = array.ctypes.data + rows * length
    pages = starts & -mmap.PAGESIZE
    lengths = starts + length - pages
    for start, size in zip(pages.tolist(), lengths.tolist(), strict=True):
        advise(start, size, mmap.MADV_WILLNEED)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_WILLNEED"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
