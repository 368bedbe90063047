"""A process of its own: what decoding large pictures takes, next to what their headers tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from large_pictures import LARGE

from hashlens.data.preprocessing import Preprocessing
from hashlens.service.limits import Limits
from hashlens.service.uploads import check_header, decode_upload


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])


def main() -> None:
    """Print, by name, bytes told and taken, without and with a size to aim at."""
    width, height = int(sys.argv[1]), int(sys.argv[2])
    model = Preprocessing(64)
    for name, make in LARGE.items():
        data = make(width, height)
        for hint in (None, model.size_hint):
            header = check_header(data, Limits(decoding_bytes=1 << 40), size_hint=hint)
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            model.pixels(decode_upload(data, header, size_hint=hint))
            taken = _status("VmHWM") - before
            print(json.dumps([name, header.decoding_bytes, taken]), flush=True)


main()
