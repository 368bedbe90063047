"""Images that are sound but for their extras, slightly cut, very large, or of an odd range."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hashlens import ImageError, open_source
from hashlens.data.decoding import decode_source, iter_decoded
from hashlens.data.image import ImageWarning
from hashlens.data.opening import load_image
from hashlens.data.preprocessing import Preprocessing
from image_builders import encoded, picture

PICTURE = picture("cross", 3, 64)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(extra: bytes) -> bytes:
    data = encoded(PICTURE)
    return data[:33] + extra + data[33:]


NOISE = np.random.default_rng(0).bytes(1 << 21)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(NOISE)),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 24))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(1 << 24))),
        chunk(b"tEXt", b"Comment\0words", crc=1),
        chunk(b"gAMA", b"\0\0"),
        chunk(b"iCCP", b"no profile at all"),
        chunk(b"pHYs", b""),
    ],
)
def test_a_sound_png_with_large_or_damaged_extras_is_read(extra: bytes) -> None:
    data = with_chunk(extra)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(PICTURE))


def test_a_png_with_damaged_pixels_is_refused_all_the_same() -> None:
    data = bytearray(with_chunk(chunk(b"tEXt", b"Comment\0words", crc=1)))
    data[-40] ^= 1
    with pytest.raises(ImageError):
        load_image(bytes(data))


def test_large_metadata_of_other_formats_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 3_000_000)
    assert load_image(encoded(PICTURE, pnginfo=info)).size == (64, 64)
    assert load_image(encoded(PICTURE, "JPEG", icc_profile=NOISE[:500_000])).size == (64, 64)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("lacking", [1, 2, 3, 40])
def test_a_jpeg_that_lacks_its_last_bytes_is_read_and_told(
    options: dict[str, object], lacking: int
) -> None:
    data = encoded(picture("circle", 0, 256), "JPEG", quality=95, **options)
    with pytest.warns(ImageWarning, match="bytes: lacks its last bytes"):
        image = load_image(data[:-lacking])
    whole = np.asarray(load_image(data)).astype(int)
    assert np.abs(np.asarray(image) - whole)[:200].mean() < 4


def test_strict_refuses_a_cut_jpeg_wherever_it_is_read(tmp_path: Path) -> None:
    data = encoded(picture("circle", 0, 256), "JPEG", quality=95)
    (tmp_path / "cut.jpg").write_bytes(data[:-30])
    source, size = open_source(tmp_path), Preprocessing(16)
    with pytest.warns(ImageWarning, match="cut.jpg: lacks its last bytes"):
        assert len(decode_source(source, size).positions) == 1
    with pytest.raises(ImageError, match="truncated"):
        decode_source(source, size, strict=True)
    with pytest.raises(ImageError, match="truncated"):
        list(iter_decoded(source.uris, size, strict=True))
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: len(data) // 2])


def test_a_jpeg_of_a_phone_with_very_many_pixels_is_shrunk_while_it_is_read() -> None:
    data = encoded(Image.new("L", (16_320, 12_240), 90), "JPEG")
    assert load_image(data).size == (8160, 6120)
    small = load_image(data, size_hint=224)
    assert small.size == (2040, 1530)
    assert small.getpixel((700, 700)) == 90
    progressive = encoded(Image.new("L", (16_320, 12_240), 90), "JPEG", progressive=True)
    with pytest.raises(ImageError, match=r"16320 x 12240 pixels are over the limit"):
        load_image(progressive)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_fewer_bits_in_sixteen_fills_the_range(bits: int) -> None:
    ramp = (np.arange(800) * ((1 << bits) - 1) // 799).astype(np.uint16).reshape(20, 40)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = load_image(encoded(Image.fromarray(ramp), "TIFF"))
    expected = np.rint(ramp.astype(np.float32) / ((1 << bits) - 1) * 255)
    assert np.abs(np.asarray(image) - expected).max() <= 1
    assert [f"taken for {bits} bits" in str(one.message) for one in told] == [True] * (bits < 16)


@pytest.mark.parametrize(
    ("low", "top", "told"),
    [(0, 1, ""), (0, 255, ""), (0, 10, "stretched from 0 to 10"), (-1, 1, "from -1 to 1"),
     (300, 9000, "from 300 to 9000"), (0, 0.01, "from 0 to 0.01")],
)  # fmt: skip
def test_floats_of_any_range_keep_their_picture(low: float, top: float, told: str) -> None:
    values = np.linspace(low, top, 800, dtype=np.float32).reshape(20, 40)
    values[3, 4], values[3, 5] = np.nan, np.inf
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pixels = np.asarray(load_image(encoded(Image.fromarray(values), "TIFF")))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels[3, 5] == 255
    assert len(found) == bool(told)
    assert not told or told in str(found[0].message)


def tiff(bands: int, bits: int, kind: int) -> bytes:
    """A TIFF of 4 x 4 pixels with any number and kind of bands."""
    body = bytes(4 * 4 * bands * bits // 8)
    tags = [
        (256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, bands), (278, 3, 1, 4), (279, 4, 1, len(body)),
        (339, 3, 1, kind),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "told"),
    [
        (5, 8, 1, "a TIFF of 5 bands of 8 bits"),
        (7, 16, 1, "a TIFF of 7 bands of 16 bits"),
        (3, 32, 3, "a TIFF of 3 bands of 32 floating-point bits"),
    ],
)
def test_bands_that_are_no_picture_are_named(bands: int, bits: int, kind: int, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        load_image(tiff(bands, bits, kind))


def test_colour_of_sixteen_bits_that_is_nearly_black_is_told() -> None:
    dark = np.full((4, 4, 3), 900, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in dark)
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    with pytest.warns(ImageWarning, match="only the upper 8 bits are read"):
        load_image(data + chunk(b"IEND", b""))


def test_heic_is_read_where_its_plugin_is(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    try:
        PICTURE.save(tmp_path / "IMG_1.HEIC", format="HEIF", quality=90)
    except Exception as error:  # the library was built without an encoder
        pytest.skip(f"pillow-heif cannot write HEIC here: {error}")
    source = open_source(tmp_path)
    assert [Path(uri).name for uri in source.uris] == ["IMG_1.HEIC"]
    found = np.asarray(source.load(0)).astype(int)
    assert np.abs(found - np.asarray(PICTURE)).mean() < 12
    (tmp_path / "phone").write_bytes((tmp_path / "IMG_1.HEIC").read_bytes())
    assert len(open_source(tmp_path)) == 2  # judged by its content
