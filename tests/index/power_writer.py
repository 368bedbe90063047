"""A process whose system calls are recorded: makes an index and changes it in every way."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import crash_writer
import numpy as np

from hashlens import HashIndex


def state(index: HashIndex) -> list[tuple[int, str | None, str]]:
    """Ids, labels and codes: what must not be lost."""
    ids, codes, _ = index.encoded()
    texts = [code.tobytes().hex() for code in codes]
    labels = [record.label for record in index.records()]
    return list(zip(ids.tolist(), labels, texts, strict=True))


def main() -> None:
    """Work in a folder; write to standard output the state after each step, and its end."""
    path = Path(sys.argv[1]) / "made" / "for" / "it" / "x.idx"
    rng = np.random.default_rng(5)

    def say(index: HashIndex) -> None:
        os.write(1, (repr(state(index)) + "\n").encode())

    index = HashIndex.create(path, bits=crash_writer.BITS, feature_dim=crash_writer.WIDTH)
    say(index)
    for step in range(12):
        count = int(rng.integers(1, 30))
        codes = rng.integers(0, 256, (count, crash_writer.BITS // 8), np.uint8)
        features = rng.standard_normal((count, crash_writer.WIDTH)).astype(np.float32)
        index.add_encoded(codes, features, ["u"] * count)
        say(index)
        index.update(int(index.ids()[0]), label=f"label {step}")
        say(index)
        if step % 3 == 2:
            index.remove(index.ids()[: len(index) // 3])
            say(index)
        if step % 4 == 3:
            index.compact()
            say(index)
        if step == 6:
            index.close()  # the log is moved into the database
            index = HashIndex.open(path)
    index.close()


if __name__ == "__main__":
    main()
