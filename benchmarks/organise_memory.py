"""Memory that organising codes takes, and how long.

    python benchmarks/organise_memory.py [--codes N] [--bits B]

N clustered codes (as in ``hashlens bench search``) are written to a file, piece by piece. Another
process maps it, makes a ``CodeDatabase`` and organises it; the peak of its memory is read from
Linux's count for each of the two steps, above what the process takes without codes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hashlens.bench.search import clustered_codes
from hashlens.bench.timing import environment, machine_line
from hashlens.codes.database import CodeDatabase
from hashlens.codes.threads import thread_count

PIECE = 1_000_000


def peak() -> int:
    """Largest memory in bytes since it was last asked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(line.split()[1])


def write(path: Path, codes: int, bits: int) -> None:
    """The codes, as an array file."""
    shape = (codes, bits // 8)
    rows = np.lib.format.open_memmap(path, "w+", dtype=np.uint8, shape=shape)
    for at in range(0, codes, PIECE):
        rows[at : at + PIECE] = clustered_codes(min(PIECE, codes - at), bits, 0, stream=at)
    rows.flush()


def measure(path: Path) -> None:
    """Print the peaks of making the database and of organising it."""
    CodeDatabase(clustered_codes(1 << 16, 64, 0)).organise()  # kernels are compiled now
    rows = np.load(path, mmap_mode="r")
    count, own = len(rows), rows.nbytes / len(rows)
    _ = peak()
    before = peak()
    begin = time.perf_counter()
    database = CodeDatabase(rows)
    made = time.perf_counter() - begin
    with_file = peak() - before  # the mapped file counts too while it is read
    del rows
    _ = peak()
    begin = time.perf_counter()
    organised = database.organise()
    seconds = time.perf_counter() - begin
    most, rest = peak() - before, peak() - before
    print(f"{count:,} codes of {own:.0f} bytes, organised: {organised}")
    print("| step | seconds | peak, GB | bytes a code |\n|---|---|---|---|")
    for step, took, size in (
        ("made (the mapped file counted too)", made, with_file),
        ("organised", seconds, most),
        ("afterwards", 0.0, rest),
    ):
        print(f"| {step} | {took:.1f} | {size / 1e9:.2f} | {size / count:.1f} |")


def main() -> None:
    """Write the codes, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=100_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measured:
        measure(options.measured)
        return
    print(machine_line(environment(thread_count())))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npy"
        write(path, options.codes, options.bits)
        subprocess.run([sys.executable, __file__, "--measured", str(path)], check=True)


if __name__ == "__main__":
    main()
