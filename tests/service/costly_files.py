"""Small files that would cost a decoder much: many scans, many segments, slow coding."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def whole(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("P" if kind == "GIF" else "RGB", (64, 64), 3).save(buffer, kind)
    return buffer.getvalue()


def jpeg_of_scans(scans: int, side: int = 7000) -> bytes:
    """A progressive JPEG of one grey: each scan of some bytes goes over all blocks."""
    blocks = ((side + 7) // 8) ** 2
    tables = segment(0xDB, b"\0" + bytes([1] * 64))
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    one_code = bytes([1] + [0] * 15)
    tables += frame + segment(0xC4, b"\0" + one_code + b"\0")
    tables += segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    runs = ("0" + "1" * 14) * -(-blocks // 32767)  # each: 32,767 blocks have no more values
    runs += "1" * (-len(runs) % 8)
    packed = bytes(int(runs[i : i + 8], 2) for i in range(0, len(runs), 8))
    other = segment(0xDA, b"\1\1\0\1\x3f\0") + packed.replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + tables + first + other * (scans - 1) + b"\xff\xd9"


def after(start: int, kind: str, part: bytes, count: int) -> bytes:
    """A good file with a part repeated behind its first bytes."""
    good = whole(kind)
    return good[:start] + part * count + good[start:]


def bmp_of_runs(side: int = 7000) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    body = b"\1\5\0\0" * side + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 1078) + header + body


def gif_with(blocks: bytes) -> bytes:
    good = whole("GIF")
    start = 13 + (6 << (good[10] & 7) if good[10] & 0x80 else 0)
    return good[:start] + blocks + good[start:]


COSTLY: dict[str, Callable[[], bytes]] = {
    "jpeg scans": lambda: jpeg_of_scans(3000),
    "jpeg comments": lambda: after(2, "JPEG", segment(0xFE, b"a"), 200_000),
    "jpeg exif": lambda: after(2, "JPEG", segment(0xE1, b"Exif\0\0" + bytes(500)), 20_000),
    "jpeg padding": lambda: after(2, "JPEG", b"\xff", 2_000_000),
    "jpeg junk": lambda: after(2, "JPEG", b"\x11\xff\xf0", 500_000),
    "png chunks": lambda: after(33, "PNG", chunk(b"prVt", b""), 100_000),
    "png text": lambda: after(33, "PNG", chunk(b"tEXt", b"a\0b"), 100_000),
    "gif comments": lambda: gif_with(b"\x21\xfe\1a\0" * 200_000),
    "gif blocks": lambda: gif_with(b"\x21\xfe" + b"\1a" * 500_000 + b"\0"),
    "bmp runs": bmp_of_runs,
}
