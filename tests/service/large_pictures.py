"""Pictures of any size in every way that pixels are stored, most of them a few kilobytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from costly_files import chunk
from PIL import Image

_TURNED = Image.Exif()
_TURNED[0x0112] = 6


def saved(width: int, height: int, mode: str, kind: str, **options: Any) -> bytes:
    """One colour, written by Pillow."""
    colour = 5 if mode in ("L", "P") else (5, 90, 200, 100)[: len(mode)]
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, bands: int, *extra: bytes) -> bytes:
    """A PNG of zeros: 0 is grey, 2 RGB, 3 a palette, 4 grey and 6 RGB with transparency."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    squeezed = zlib.compressobj(1)
    row = bytes(1 + (width * bands * bits + 7) // 8)
    data = b"".join([squeezed.compress(row) for _ in range(height)] + [squeezed.flush()])
    parts = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def animated(width: int, height: int) -> bytes:
    frames = [Image.new("L", (width, height), grey) for grey in (50, 99)]
    return saved(width, height, "L", "GIF", save_all=True, append_images=frames, disposal=2)


def lying_avif(width: int, height: int) -> bytes:
    """An AVIF whose header tells 64 x 64 pixels; its decoder makes them all, then shrinks them."""
    data = saved(width, height, "RGB", "AVIF", speed=10, subsampling="4:4:4")
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", 64, 64) + data[place + 8 :]


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


def grid_avif(width: int, height: int, mode: str = "RGB", *, is_scaled: bool = False) -> bytes:
    """An AVIF of two by two parts that its decoder puts together, then shrinks to 64 x 64 pixels.

    Where it is scaled, each part holds 64 x 64 pixels, which the decoder makes more.
    """
    across, down = (width + 1) // 2, (height + 1) // 2
    size = (64, 64) if is_scaled else (across, down)
    whole = saved(*size, mode, "AVIF", speed=10, subsampling="4:4:4")
    coded = whole[whole.index(b"mdat") + 4 :]
    config = whole[whole.index(b"av1C") - 4 :]
    config = config[: int.from_bytes(config[:4])]
    grid = struct.pack(">BBBBII", 0, 1, 1, 1, width, height)
    parts = range(2, 6)
    sizes = [_box(b"ispe", struct.pack(">III", 0, *each)) for each in ((64, 64), (across, down))]
    deep = _box(b"pixi", bytes(4) + bytes([3, 8, 8, 8]))
    uses = struct.pack(">IIHBBB", 0, 5, 1, 2, 1, 3)
    uses += b"".join(struct.pack(">HBBBB", part, 3, 2, 3, 0x84) for part in parts)
    kinds = [b"grid", *[b"av01"] * 4]
    entries = [
        _box(b"infe", struct.pack(">IHH", 2 << 24, at + 1, 0) + kind + b"\0")
        for at, kind in enumerate(kinds)
    ]

    def head(start: int) -> bytes:
        places = struct.pack(">IBBH", 0, 0x44, 0, 5)
        places += struct.pack(">HHHII", 1, 0, 1, start, len(grid))
        for at, part in enumerate(parts):
            begin = start + len(grid) + at * len(coded)
            places += struct.pack(">HHHII", part, 0, 1, begin, len(coded))
        boxes = (
            _box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
            _box(b"pitm", struct.pack(">IH", 0, 1)),
            _box(b"iloc", places),
            _box(b"iinf", struct.pack(">IH", 0, 5) + b"".join(entries)),
            _box(b"iref", bytes(4) + _box(b"dimg", struct.pack(">6H", 1, 4, *parts))),
            _box(b"iprp", _box(b"ipco", b"".join((*sizes, deep, config))) + _box(b"ipma", uses)),
        )
        brands = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
        return brands + _box(b"meta", bytes(4) + b"".join(boxes))

    return head(len(head(0)) + 8) + _box(b"mdat", grid + 4 * coded)


_PALETTE = chunk(b"PLTE", bytes(768))
LARGE: dict[str, Callable[[int, int], bytes]] = {
    "webp rgba": partial(saved, mode="RGBA", kind="WEBP", lossless=True),
    "webp rgba lossy": partial(saved, mode="RGBA", kind="WEBP", method=0),
    "webp rgb": partial(saved, mode="RGB", kind="WEBP", method=0),
    "avif rgba": partial(saved, mode="RGBA", kind="AVIF", speed=10),
    "avif rgb": partial(saved, mode="RGB", kind="AVIF", speed=10, subsampling="4:4:4"),
    "avif that lies": lying_avif,
    "avif grid that lies": grid_avif,
    "avif parts that lie": partial(grid_avif, is_scaled=True),
    "png rgb": lambda width, height: png(width, height, 8, 2, 3),
    "png rgba": lambda width, height: png(width, height, 8, 6, 4),
    "png rgba turned": partial(saved, mode="RGBA", kind="PNG", exif=_TURNED),
    "png rgb turned": partial(saved, mode="RGB", kind="PNG", exif=_TURNED),
    "png rgba 16": lambda width, height: png(width, height, 16, 6, 4),
    "png rgb 16": lambda width, height: png(width, height, 16, 2, 3),
    "png grey 16": lambda width, height: png(width, height, 16, 0, 1),
    "png grey alpha": lambda width, height: png(width, height, 8, 4, 2),
    "png palette": lambda width, height: png(width, height, 8, 3, 1, _PALETTE),
    "png palette alpha": lambda width, height: png(
        width, height, 8, 3, 1, _PALETTE, chunk(b"tRNS", bytes(256))
    ),
    "png rgb key": lambda width, height: png(width, height, 8, 2, 3, chunk(b"tRNS", bytes(6))),
    "png bits": lambda width, height: png(width, height, 1, 0, 1),
    "gif": partial(saved, mode="P", kind="GIF"),
    "gif clear": partial(saved, mode="P", kind="GIF", transparency=5),
    "gif frames": animated,
    "bmp": partial(saved, mode="L", kind="BMP"),
    "jpeg": partial(saved, mode="RGB", kind="JPEG"),
    "jpeg scans": partial(saved, mode="RGB", kind="JPEG", progressive=True, subsampling=0),
    "jpeg cmyk": partial(saved, mode="CMYK", kind="JPEG", progressive=True),
}
"""A picture of so many pixels across and down, by name."""
