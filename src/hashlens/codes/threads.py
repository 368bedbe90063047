"""Threads for kernels that release the interpreter lock.

We start our own threads and do not use numba's parallel layers: two Python threads must not enter
those at the same time (the workqueue layer aborts the process), and in a service they would.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

from hashlens.machine import cores


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="hashlens-codes")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def thread_count() -> int:
    """Threads a search may use: the process's cores or numba's setting, whichever is less."""
    chosen = getattr(sys.modules.get("numba"), "get_num_threads", None)
    if chosen is None:  # not loaded yet, so its setting is still the environment's
        return min(cores(), int(os.environ.get("NUMBA_NUM_THREADS") or cores()))
    return min(cores(), int(chosen()))


def run_all(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks at the same time, the first in this thread; return when all are done."""
    waiting = [_pool().submit(task) for task in tasks[1:]]
    try:
        tasks[0]()
    finally:
        for task in waiting:
            task.exception()  # wait for all, as they write into the caller's arrays
    for task in waiting:
        task.result()


def submit(task: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Start a task on one of the threads."""
    return _pool().submit(task, *arguments)


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into at most ``parts`` ranges of nearly equal length, none empty."""
    parts = max(1, min(parts, count))
    cuts = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(cuts))
