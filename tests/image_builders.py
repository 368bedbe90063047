"""Real image files, good, odd and broken, for the tests of every part."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("circle", "cross", "stripe")


def picture(kind: str, seed: int, side: int = 32) -> Image.Image:
    """A noisy coloured drawing of one of ``CLASSES``; different for each seed."""
    rng = np.random.default_rng([CLASSES.index(kind), seed])
    y, x = np.mgrid[:side, :side] / side - 0.5 - rng.uniform(-0.1, 0.1, (2, 1, 1))
    shape = {
        "circle": x**2 + y**2 < 0.09,
        "cross": (abs(x) < 0.08) | (abs(y) < 0.08),
        "stripe": np.sin(20 * y) > 0,
    }[kind]
    colour = np.eye(3)[CLASSES.index(kind)] * 120
    pixels = 60 + shape[..., None] * colour + rng.normal(0, 12, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_class_folder(root: Path, per_class: int, side: int = 32) -> Path:
    """One sub-folder for each of ``CLASSES`` with PNG files."""
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for seed in range(per_class):
            picture(kind, seed, side).save(root / kind / f"{seed:03}.png")
    return root


@cache
def holiday(folder: Path, count: int = 24) -> Path:
    """Pictures by year and month, next to what phones, disks and photo programs leave."""
    for number in range(count):
        month = folder / f"20{21 + number % 3}" / f"{1 + number % 4:02}"
        month.mkdir(parents=True, exist_ok=True)
        kind = ("circle", "cross", "stripe")[number % 3]
        picture(kind, number, side=96).save(month / f"IMG_{number:04}.jpg")
    for junk in ("@eaDir", ".thumbnails", "#recycle"):
        (folder / junk).mkdir()
        picture("cross", 99).save(folder / junk / "small.jpg")
    (folder / "2021" / "raw.cr2").write_bytes(b"raw")
    (folder / "Thumbs.db").write_bytes(b"db")
    return folder


def _bomb() -> bytes:
    """A whole PNG of 30,000 x 30,000 grey pixels, in 900 kB."""
    side = 30_000
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def write_bad_images(folder: Path) -> dict[str, Path]:
    """Files named like images that cannot be read, by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    jpeg = encoded(picture("cross", 0, 64), "JPEG")
    png = encoded(picture("cross", 0, 64))
    contents = {
        "zero_bytes.jpg": b"",
        "text.jpg": b"This is a letter, not a picture.\n",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "header_only.png": png[:30],
        "noise.png": png[:60] + np.random.default_rng(0).bytes(len(png) - 60),
        "bomb.png": _bomb(),
        "script.ps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    }
    paths = {}
    for name, content in contents.items():
        paths[name.rsplit(".", 1)[0] if name.count(".") > 1 else name] = folder / name
        (folder / name).write_bytes(content)
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    paths["broken_link.png"] = folder / "broken_link.png"
    return paths


def write_odd_images(folder: Path) -> dict[str, Path]:
    """Files of unusual kinds that can be read, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    half = Image.new("RGB", (40, 20), (255, 0, 0))
    half.paste((0, 0, 255), (0, 0, 20, 20))  # left blue, right red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    ramp = (np.arange(800, dtype=np.uint32) * 65535 // 799).astype(np.uint16).reshape(20, 40)
    clear = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))  # left transparent, right red
    palette = half.quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    grey = Image.new("L", (40, 20), 90)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "animated.gif": (red, {"save_all": True, "append_images": [half, grey.convert("RGB")]}),
        "cmyk.jpg": (red.convert("CMYK"), {"quality": 95}),
        "sixteen_bit.png": (Image.fromarray(ramp), {}),
        "sixteen_bit.tif": (Image.fromarray(ramp), {}),
        "palette_alpha.png": (palette, {"transparency": palette.info["transparency"]}),
        "rgba.png": (clear, {}),
        "grey_alpha.png": (clear.convert("LA"), {}),
        "rotated.jpg": (half, {"exif": exif, "quality": 95}),
        "one_bit.png": (grey.point(lambda v: 255, "1"), {}),
        "grey.png": (grey, {}),
        "float.tif": (Image.fromarray(ramp.astype(np.float32) / 65535), {}),
        "name # with é.png": (red, {}),
    }
    paths = {}
    for name, (image, options) in files.items():
        paths[name] = folder / name
        image.save(paths[name], **options)
    return paths
