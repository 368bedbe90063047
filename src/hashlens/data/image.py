"""One image: from a file, bytes or an array to an upright picture in grey or colour."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias
from warnings import warn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hashlens.data.remote import read_remote
from hashlens.errors import ImageError, SourceError, system_reason
from hashlens.files import Uri, path_uri
from hashlens.types import ImageInput

RawImage: TypeAlias = bytes | Path | Uri | NDArray[np.uint8] | Image.Image
"""What is held of one image: encoded bytes, a file here or elsewhere, or pixels."""

MAX_PIXELS = 178_956_970
"""Largest width x height that is decoded; checked in the header, before memory is taken."""

MAX_FILE_BYTES = 1 << 31
"""Largest file that is read: no picture of ``MAX_PIXELS`` takes more."""

# Pillow also opens formats that start other programs or read other files; those stay closed.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"),
    *("HEIF", "JXL"),
)
_PLUGIN_SUFFIXES = {"HEIF": (".heic", ".heif", ".hif"), "JXL": (".jxl",)}
_JPEG_XL_PLUGINS = ("pillow_jxl", "jxlpy.JXLImagePlugin")


def image_name(image: ImageInput, position: int | None = None) -> str:
    """What to call an image in a message: its path or URI, else its kind and position."""
    if isinstance(image, str):
        return image.encode("utf-8", "backslashreplace").decode()
    if isinstance(image, os.PathLike):
        return path_uri(os.fspath(image))
    kind = "bytes" if isinstance(image, bytes) else "image"
    return kind if position is None else f"{kind} at position {position}"


class ImageWarning(UserWarning):
    """An image was read, but not as it is: the message names it, and says what was done."""


def decode(
    raw: RawImage, name: str, *, size_hint: int | None = None, strict: bool = False
) -> Image.Image:
    """Decode an image, turn it upright, and make it grey or colour of 8 bits.

    The first frame of an animation is taken; transparency is laid over white; 16-bit values are
    scaled to 8 bits; CMYK and palettes become RGB. A JPEG may be decoded smaller, but not below
    twice ``size_hint`` pixels. What is guessed gives an ``ImageWarning``; with ``strict``, a JPEG
    that lacks its last bytes is refused.
    """
    try:
        if isinstance(raw, np.ndarray):
            return _from_array(raw, name)
        if isinstance(raw, Image.Image):
            return _finish(raw, name, None)  # the caller's picture must not change
        if isinstance(raw, Uri):
            raw = read_remote(raw, MAX_FILE_BYTES)
        data = raw if isinstance(raw, bytes) else read_file(raw, name)[0]
        if not data:
            raise ImageError(name, "empty (0 bytes)")
        return _from_bytes(data, name, size_hint, strict)
    except (ImageError, MemoryError):
        raise
    except SourceError as error:
        raise ImageError(name, str(error).removeprefix(f"{name}: ")) from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"over the limit of {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, _unknown_kind(data)) from error
    except OSError as error:
        raise ImageError(name, _os_reason(error)) from error
    except Exception as error:  # Pillow's readers raise anything on damaged files
        reason = f"damaged ({type(error).__name__}: {error})".replace("\n", " ")
        raise ImageError(name, reason) from error


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MAX_SHRUNK_PIXELS = 4 * MAX_PIXELS
"""Largest JPEG that is read: one over ``MAX_PIXELS`` is decoded at half its size or less."""


def _from_bytes(data: bytes, name: str, size_hint: int | None, strict: bool) -> Image.Image:
    """Decode an image; again without what only goes along with it, where that is damaged."""

    def read(encoded: bytes) -> Image.Image:
        with Image.open(io.BytesIO(encoded), formats=_known_formats()) as picture:
            return _finish(picture, name, size_hint)

    try:
        return read(data)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        if not data.startswith(_JPEG):
            raise
        with JpegImageFile(io.BytesIO(data)) as picture:
            return _finish(picture, name, size_hint)
    except Exception as error:
        if data.startswith(_PNG) and (bare := _without_extras(data)) != data:
            return read(bare)
        if strict or not data.startswith(_JPEG) or "truncated" not in str(error):
            raise
        image = read(data + b"\xff\xd9")  # the mark of the end
        if missing := _missing_rows(image):
            if 10 * missing > image.height:
                raise
            share = f"its last {missing} of {image.height} rows are grey"
        warn(f"{name}: lacks its last bytes{f'; {share}' if missing else ''}", ImageWarning, 3)
        return image


def _without_extras(data: bytes) -> bytes:
    """A PNG with nothing but its pixels, palette, transparency and EXIF."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        checksum = int.from_bytes(data[end - 4 : end])
        is_sound = kind == b"eXIf" and zlib.crc32(data[at + 4 : end - 4]) == checksum
        if is_sound or kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _missing_rows(image: Image.Image) -> int:
    """Rows at the end that a decoder filled with grey because their data were not there."""
    rows = np.asarray(image).reshape(image.height, -1)
    end = image.height
    while end and bool((abs(rows[end - 1].astype(np.int16) - 128) <= 1).all()):
        end -= 1
    return image.height - end


_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _unknown_kind(data: bytes) -> str:
    """Why no reader takes a file."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in _known_formats():
        return "HEIC, which is read with pip install 'hashlens[heic]'"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")) and "JXL" not in _known_formats():
        return "JPEG XL, which is read with pip install pillow-jxl-plugin"
    if data.startswith((b"II*\0", b"MM\0*")):
        with suppress(Exception):  # a damaged directory tells nothing
            tags = ImageFileDirectory_v2(data[:8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            bits = "/".join(str(each) for each in sorted({*tags.get(258, (1,))}))
            kind = " floating-point" if 3 in tags.get(339, (1,)) else ""
            return (
                f"a TIFF of {tags.get(277, 1)} bands of {bits}{kind} bits; grey, RGB and RGBA of "
                "8 or 16 bits are read, save it as one of these"
            )
    return "not an image in a known format"


def read_file(path: Path, name: str) -> tuple[bytes, os.stat_result]:
    """A file's content, and what the system said of the file before the content was read."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, "a folder, expected an image file")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ImageError(name, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(name, f"over the limit of {MAX_FILE_BYTES:,} bytes")
        return path.read_bytes(), status
    except OSError as error:
        raise ImageError(name, _os_reason(error)) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageError(name, f"no name of a file ({error})") from error


def _os_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if error.strerror:
        return system_reason(error)
    return f"damaged ({error})".replace("\n", " ")


@cache
def _known_formats() -> list[str]:
    """Formats that can be read here: those of Pillow, and of its plugins that are installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    for plugin in _JPEG_XL_PLUGINS:  # each registers itself
        with suppress(ImportError):
            import_module(plugin)
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@cache
def plugin_suffixes() -> frozenset[str]:
    """Names of files that plugins of Pillow read here, if they are installed."""
    formats = _known_formats()
    known = (ends for name, ends in _PLUGIN_SUFFIXES.items() if name in formats)
    return frozenset(suffix for ends in known for suffix in ends)


def looks_like_image(path: Path) -> bool:
    """Whether a file whose name says nothing begins like an image that can be read here."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with Image.open(path, formats=_known_formats()):
            return True
    except Image.DecompressionBombError:
        return True  # it is listed, and refused with the reason
    except Exception:  # Pillow's readers raise anything on files of other kinds
        return False


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(name, f"expected an array of uint8, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(name, f"expected shape (H, W) or (H, W, 3), got {array.shape}")
    if 0 in array.shape:
        raise ImageError(name, f"empty array of shape {array.shape}")
    return _finish(Image.fromarray(np.ascontiguousarray(array)), name, None)


# What decoders hold of each pixel until a picture is there, in bytes; measured, and rounded up.
_HELD_BY_DECODER = {"WEBP": 13.0, "AVIF": 20.0, "GIF": 1.0}
_FIXED_BYTES = 8 << 20
_MOST_AV1_PARTS, _SEQUENCE_HEADER, _FRAMES = 10_000, 1, (3, 6)


def decoding_bytes(image: Image.Image, data: bytes, size_hint: int | None = None) -> int:
    """Most memory that ``decode`` takes for a file that was opened, from its header."""
    coded = image.width * image.height
    if image.format in ("JPEG", "MPO") and size_hint is not None:
        image.draft(None, (2 * size_hint, 2 * size_hint))
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)
    is_plain = image.mode in ("L", "RGB") and not {"transparency", "exif", "xmp"} & {*image.info}
    decoder = _HELD_BY_DECODER.get(image.format or "", 0.0)
    total = image.width * image.height * (stored + max(decoder, 1.2 if is_plain else 4.8))
    if image.format == "AVIF":
        total = max(total, decoder * _av1_pixels(data))
    layers = getattr(image, "layer", [])
    if layers and data.count(b"\xff\xda") > 1:  # of several scans all coefficients are held
        blocks = [across * down for _, across, down, _ in layers]
        total += coded * 2 * sum(blocks) / max(blocks)
    return int(total) + 2 * len(data) + _FIXED_BYTES


def _av1_pixels(data: bytes) -> int:
    """Most pixels that an AVIF has its decoder make before it checks the header's size.

    They are those of a frame, of each size that a box names, to which a frame is scaled, and of
    a grid, whose parts are held next to it. Frames that refer to others are held with these.

    The AV1 specification, sections 5.3 to 5.5; ISO/IEC 14496-12, section 8.11.3 (``iloc``);
    ISO/IEC 23008-12, sections 6.5.3 (``ispe``) and 6.6.2.3 (``grid``).
    """
    meta = _box(data, b"meta")[4:]
    sizes = _boxes(_box(_box(meta, b"iprp"), b"ipco"), b"ispe")
    most = max((_area(size[4:12]) for size in sizes), default=0)
    parts = total = 0
    for coded in _items(data, _box(meta, b"iloc"), _box(meta, b"idat")):
        if len(coded) in (8, 12) and coded[0] == 0:
            most = max(most, 3 * _area(coded[4:]) // 2)
        read, total, pixels, frames = _Reader(coded), total + len(coded), 0, 1
        while not read.is_over() and parts <= _MOST_AV1_PARTS and total <= 2 * len(data):
            _, kind, has_extension, has_size, _ = map(read, (1, 4, 1, 1, 1))
            read(8 * has_extension)
            size, shift, goes_on = 0, 0, has_size
            while goes_on and shift < 35:
                goes_on, part = read(1), read(7)
                size, shift = size | part << shift, shift + 7
            frames += kind in _FRAMES
            if kind == _SEQUENCE_HEADER:
                pixels = max(pixels, _sequence_pixels(_Reader(coded, read.at)))
            read.at += 8 * size if has_size else 8 * len(coded)
            parts += 1
        most = max(most, pixels * max(frames, 2) // 2)
        if parts > _MOST_AV1_PARTS or total > 2 * len(data):
            raise ImageError("image", "an AVIF in far more parts than a picture has")
    if _box(data, b"moov"):
        raise ImageError("image", "an AVIF that moves; save one of its pictures")
    return most


def _area(size: bytes) -> int:
    """Width times height, of which each takes half of the bytes."""
    half = len(size) // 2
    return int.from_bytes(size[:half]) * int.from_bytes(size[half:])


def _box(data: bytes, name: bytes) -> bytes:
    """Content of the first box of a name, or nothing."""
    return next(_boxes(data, name), b"")


def _boxes(data: bytes, name: bytes) -> Iterator[bytes]:
    """Contents of the boxes of a name."""
    at = 0
    while at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        end = at + size if size else len(data)
        if data[at + 4 : at + 8] == name:
            yield data[at + head : end]
        at = max(end, at + head)


def _items(data: bytes, places: bytes, inside: bytes) -> Iterator[bytes]:
    """What the items of an AVIF hold, by the content of its boxes ``iloc`` and ``idat``."""
    read = _Reader(places)
    version, _, offset, length, base, index = map(read, (8, 24, 4, 4, 4, 4))
    wide = 32 if version == 2 else 16
    for _ in range(read(wide)):
        read(wide)
        held = inside if version and read(16) & 15 == 1 else data
        _, start, count = map(read, (16, 8 * base, 16))
        if read.is_over():
            return
        parts = []
        for _ in range(count):
            _, at, size = map(read, (8 * index if version else 0, 8 * offset, 8 * length))
            parts.append(held[start + at : start + at + size])
        yield b"".join(parts)


def _sequence_pixels(read: _Reader) -> int:
    """Width times height in a sequence header of AV1."""
    _, is_reduced = read(4), read(1)
    if is_reduced:
        read(5)
    else:
        has_model = delay = 0
        if read(1):
            _, ticks_are_equal = read(64), read(1)
            zeros = 0
            while ticks_are_equal and not read(1) and zeros < 32:
                zeros += 1
            read(zeros)
            has_model = read(1)
            if has_model:
                delay, _ = read(5) + 1, read(42)
        has_display = read(1)
        for _ in range(read(5) + 1):
            _, level = read(12), read(5)
            read(level > 7)
            read(2 * delay + 1 if has_model and read(1) else 0)
            read(4 if has_display and read(1) else 0)
    across, down = read(4) + 1, read(4) + 1
    return (read(across) + 1) * (read(down) + 1)


class _Reader:
    """Reads numbers of so many bits from bytes; nothing but zeros follows their end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data, self.at = data, at

    def __call__(self, bits: int) -> int:
        first, self.at = self.at // 8, self.at + bits
        part = self._data[first : first + 12].ljust(12, b"\0")
        return int.from_bytes(part) >> 96 - (self.at - 8 * first) & (1 << bits) - 1

    def is_over(self) -> bool:
        """Whether all was read."""
        return self.at >= 8 * len(self._data)


def _finish(image: Image.Image, name: str, size_hint: int | None) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(name, "no pixels")
    is_jpeg = getattr(image, "format", None) in ("JPEG", "MPO")
    # A progressive JPEG is held whole while it is decoded, however small it comes out.
    shrinks = is_jpeg and width * height <= MAX_SHRUNK_PIXELS and "progressive" not in image.info
    if width * height > MAX_PIXELS and not shrinks:
        raise ImageError(name, f"{width} x {height} pixels are over the limit of {MAX_PIXELS:,}")
    if is_jpeg and size_hint is not None:
        image.draft(None, (2 * size_hint, 2 * size_hint))
    if image.width * image.height > MAX_PIXELS:
        image.draft(None, (width // 2, height // 2))
    kind = str(image.tile[0][3]) if isinstance(image, ImageFile) and image.tile else ""
    image.load()
    picture = grey_or_rgb(_upright(image), name)
    if ";16" in kind and image.mode in ("RGB", "RGBA") and 0 < np.max(picture.getextrema()) < 32:
        warn(
            f"{name}: colour of 16 bits that is nearly black; only the upper 8 bits are read",
            ImageWarning,
            4,
        )
    return picture


def _upright(image: Image.Image) -> Image.Image:
    info = image.info
    if "exif" not in info and "xmp" not in info and "Raw profile type exif" not in info:
        return image
    with suppress(Exception):  # a damaged EXIF block does not spoil the picture
        if not isinstance(image, ImageFile):  # the caller's picture must not change
            return ImageOps.exif_transpose(image)
        ImageOps.exif_transpose(image, in_place=True)  # a copy would take its memory twice
    return image


def grey_or_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """A picture in mode ``L`` or ``RGB``; grey stays grey.

    Whole numbers are scaled by the least of 8, 10, 12, 14 and 16 bits that hold them, floats from
    0 to 1 or from 0 to 255; others are stretched from their least to their greatest. Transparency
    is laid over white; CMYK and palettes become RGB.
    """
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _scaled(image, name, whole=mode != "F")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = mode in ("1", "L", "LA", "La")
        return _over_white(image, grey)
    return image.convert("L" if mode == "1" else "RGB")


_DEPTHS = (8, 10, 12, 14, 16)


def _scaled(image: Image.Image, name: str, *, whole: bool) -> Image.Image:
    """Values as grey of 8 bits, with a warning where their range had to be guessed."""
    ends = [_finite_ends(part) for part, _ in _strips(image)]
    low, top = min(low for low, _ in ends), max(top for _, top in ends)
    low, top = (low, top) if low <= top else (0.0, 0.0)
    depth = next((bits for bits in _DEPTHS if top < 1 << bits), None)
    least, greatest, done = low, top, f"stretched from {low:g} to {top:g}"
    if whole and low >= 0 and depth is not None:
        least, greatest = 0.0, float((1 << depth) - 1)
        done = "" if depth == 16 or top == 0 else f"values up to {top:g}, taken for {depth} bits"
    elif not whole and low >= 0 and (1 / 16 <= top <= 1 or 64 <= top <= 255 or top == 0):
        least, greatest, done = 0.0, 1.0 if top <= 1 else 255.0, ""
    if done:
        warn(f"{name}: {done}", ImageWarning, 5)
    span = (greatest - least) or 1.0
    grey = Image.new("L", image.size)
    for part, row in _strips(image):
        values = np.asarray(part).astype(np.float32)
        filled = np.nan_to_num(values, nan=least, posinf=greatest, neginf=least)
        eight = np.rint(np.clip((filled - least) / span, 0, 1) * 255).astype(np.uint8)
        grey.paste(Image.fromarray(eight), (0, row))
    return grey


def _finite_ends(image: Image.Image) -> tuple[float, float]:
    """Least and greatest finite value; infinities the wrong way round where there is none."""
    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)


def _over_white(image: Image.Image, grey: bool) -> Image.Image:
    flat = Image.new("L" if grey else "RGB", image.size)
    for part, row in _strips(image):
        if image.mode in ("La", "RGBa"):  # alpha already multiplied in
            part = part.convert("LA" if image.mode == "La" else "RGBA")
        picture = part.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255,) * 4)
        flat.paste(Image.alpha_composite(paper, picture).convert(flat.mode), (0, row))
    return flat


_STRIP_PIXELS = 1 << 18


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Some rows after the other, and the number of the first: copies of all take memory."""
    step = max(1, _STRIP_PIXELS // image.width)
    for row in range(0, image.height, step):
        yield image.crop((0, row, image.width, min(row + step, image.height))), row
