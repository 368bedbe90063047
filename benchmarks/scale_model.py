"""What an index costs a month on one machine, on a copy of it, and in shards: a model.

    python benchmarks/scale_model.py --images 1e9 --bits 64 --feature-dim 512

Assumptions, all of which can be given: prices are examples of rented machines, in dollars a month,
not those of any provider; memory is bought with the machine, disk apart. A code and its id take
bits / 8 + 8 bytes of memory; features in float16 and records are on disk, twice while a change is
published. A machine scans SCAN codes of 64 bits a second on its cores, in proportion to their
length; queries come one at a time. Each shard that is asked costs the front end SHARD_MS.
"""

from __future__ import annotations

import argparse
import math

RECORD_BYTES = 67  # on disk, with a URI of 41 characters: docs/background/scale.md
SCAN = 100e6 / 15.7e-3  # codes a second on two cores: docs/results/search.md
SHARD_MS = 1.8  # of the front end for each shard asked: docs/results/shards.md


def costs(given: argparse.Namespace, machines: int) -> dict[str, float]:
    """Memory and disk of each machine, the time of a scan, and dollars a month for all."""
    images = given.images / machines
    memory = images * (given.bits / 8 + 8) / 2**30
    disk = images * (2 * given.feature_dim + 2 * RECORD_BYTES) / 2**30
    scan = images / SCAN * given.bits / 64 * 1e3 + (SHARD_MS * machines if machines > 1 else 0)
    each = given.machine + given.memory_price * memory + given.disk_price * disk
    return {"memory": memory, "disk": disk, "ms": scan, "dollars": machines * given.copies * each}


def main() -> None:
    """Print a line for each number of machines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--feature-dim", type=int, default=512)
    parser.add_argument("--copies", type=int, default=2, help="of everything, for safety")
    parser.add_argument("--machine", type=float, default=60.0, help="dollars a month, without")
    parser.add_argument("--memory-price", type=float, default=3.0, help="a month for each GiB")
    parser.add_argument("--disk-price", type=float, default=0.08, help="a month for each GiB")
    given = parser.parse_args()
    print(f"{'machines':>8} {'memory GiB':>11} {'disk GiB':>9} {'scan ms':>8} {'dollars':>8}")
    most = max(1, math.ceil(given.images / 1e8))
    for machines in sorted({1, 2, 4, 8, most}):
        row = costs(given, machines)
        print(
            f"{machines:8} {row['memory']:11.1f} {row['disk']:9.0f} {row['ms']:8.1f} "
            f"{row['dollars']:8.0f}"
        )


if __name__ == "__main__":
    main()
