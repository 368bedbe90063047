"""What a command costs before it does anything: seconds, processor time and memory of a process.

    python benchmarks/cold_start.py shop.idx photo.jpg [--rounds 7]

Each command has a process of its own, and the commands take turns. ``serve`` counts until its page
is answered. FAISS, where it is installed, does the same first search of 100,000 codes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from hashlens.bench.timing import environment, machine_line
from hashlens.codes.threads import thread_count

CODES = "import numpy as np; d = np.random.default_rng(0).integers(0, 256, (100_000, 8), np.uint8)"
OURS = f"{CODES}; from hashlens import hamming_topk; hamming_topk(d, d[:1], 10)"
FAISS = f"{CODES}; import faiss; i = faiss.IndexBinaryFlat(64); i.add(d); i.search(d[:1], 10)"


class Cost(NamedTuple):
    """Of one process: seconds, those that a core worked, and the most memory in MB."""

    seconds: float
    worked: float
    memory: float


def until_answered(command: list[str]) -> Cost:
    """Of a server that prints its address, until its page has come; it is ended then."""
    began, pipe = time.perf_counter(), subprocess.PIPE
    server = subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    urllib.request.urlopen(server.stdout.readline().rsplit(" ", 1)[1].strip()).read()
    seconds = time.perf_counter() - began
    server.terminate()
    _, _, used = os.wait4(server.pid, 0)
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def whole(command: list[str]) -> Cost:
    """Of a command from its start to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {command} failed")
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def main() -> None:
    """Take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index")
    parser.add_argument("photo")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    python = [sys.executable, "-c"]
    cli = [*python, "from hashlens.cli.main import main; main()"]
    calls: dict[str, Callable[[], Cost]] = {
        "`hashlens --help`": lambda: whole([*cli, "--help"]),
        "NumPy alone": lambda: whole([*python, CODES]),
        "first `hamming_topk` of 100,000 codes": lambda: whole([*python, OURS]),
        "the same with FAISS": lambda: whole([*python, FAISS]),
        "`hashlens search INDEX 3`": lambda: whole([*cli, "search", options.index, "3"]),
        "`hashlens search INDEX PHOTO`": lambda: whole(
            [*cli, "search", options.index, options.photo]
        ),
        "`hashlens serve INDEX`, to its page": lambda: until_answered(
            [*cli, "serve", options.index, "--port", "0"]
        ),
    }
    if find_spec("faiss") is None:
        del calls["the same with FAISS"]
    seen: dict[str, list[Cost]] = {name: [] for name in calls}
    for turn in range(-1, options.rounds):
        for name, call in calls.items():
            one = call()
            if turn >= 0:  # the first reads files from the disk
                seen[name].append(one)
    print(machine_line(environment(thread_count())))
    print("\n| | seconds: minimum, median | processor, s: minimum, median | MB |")
    print("|---|---:|---:|---:|")
    for name, costs in seen.items():
        seconds, worked, memory = np.array(costs).T
        print(
            f"| {name} | {seconds.min():.2f}, {np.median(seconds):.2f} "
            f"| {worked.min():.2f}, {np.median(worked):.2f} | {memory.max():.0f} |"
        )


if __name__ == "__main__":
    main()
