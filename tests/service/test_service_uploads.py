"""Uploaded bytes: what is decoded, and what is refused before and while decoding."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from costly_files import COSTLY, chunk
from hypothesis import given
from hypothesis import strategies as st
from large_pictures import LARGE
from PIL import Image

from hashlens.service.limits import Limits, Room
from hashlens.service.schemas import Refused
from hashlens.service.uploads import FORMATS, check_header, parse_object
from hashlens.service.uploads import decode_upload as decode_checked

LIMITS = Limits(pixels=1_000_000)


def decode_upload(data: bytes, limits: Limits, name: str = "image") -> Image.Image:
    return decode_checked(data, check_header(data, limits, name), name)


def encoded(kind: str, size: tuple[int, int] = (24, 16)) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header announces a size that its few bytes do not hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_named_format_is_decoded(kind: str) -> None:
    image = decode_upload(encoded(kind), LIMITS)
    assert image.size == (24, 16)
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a",
        b"%PDF-1.7 not a picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0" * 99,
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        decode_upload(data, LIMITS, "images[3]")
    assert refusal.value.status_code == 422
    assert "images[3]" in refusal.value.detail
    assert "\n" not in refusal.value.detail


def test_formats_that_are_not_named_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    with pytest.raises(Refused, match="not an image"):
        decode_upload(buffer.getvalue(), LIMITS)


@pytest.mark.parametrize("size", [(1001, 1000), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(Refused) as refusal:
        check_header(png_that_claims(*size), LIMITS)
    assert refusal.value.status_code == 413
    assert "pixels" in refusal.value.detail


def lossless_webp(width: int, height: int) -> bytes:
    """A WebP of one transparent colour in 44 bytes."""
    whole = bytearray(LARGE["webp rgba"](16, 16))
    whole[21:25] = (width - 1 | height - 1 << 14 | 1 << 28).to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.parametrize(
    "data",
    [
        lossless_webp(16_000, 3_100),
        png_that_claims(16_000, 3_100, 16, 6),
        png_that_claims(7_000, 7_000, 8, 4),
        LARGE["avif that lies"](8_000, 8_000),
        LARGE["avif grid that lies"](8_000, 8_000),
        LARGE["avif parts that lie"](8_000, 8_000),
    ],
    ids=["webp", "png of 16 bits", "png with transparency", "avif", "avif grid", "avif parts"],
)
def test_what_takes_much_memory_to_decode_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(Refused, match=r"takes \d+ MiB; at most 400 MiB") as refusal:
        check_header(data, Limits())
    assert refusal.value.status_code == 413
    assert check_header(png_that_claims(7_000, 7_000, 8, 2), Limits()).kind == "PNG"


def _avif_box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


@pytest.mark.parametrize("place", ["idat", "behind", "two parts"])
def test_the_size_of_an_avif_is_found_wherever_its_data_is(place: str) -> None:
    """The data of Pillow's file, held in the other ways that the format knows."""
    whole = LARGE["avif that lies"](8_000, 8_000)
    at = whole.index(b"mdat") + 4
    coded, head = whole[at:], whole[: whole.index(b"meta") - 4]
    start = len(head) + 400
    entries = {
        "idat": struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(coded)),
        "behind": struct.pack(">HHHHII", 1, 0, 0, 1, start, len(coded)),
        "two parts": struct.pack(">HHHHIIII", 1, 0, 0, 2, start, 7, start + 7, len(coded) - 7),
    }
    places = _avif_box(b"iloc", struct.pack(">IBBH", 1 << 24, 0x44, 0, 1) + entries[place])
    kept = whole[whole.index(b"iinf") - 4 : at - 8]  # iinf and iprp
    first = whole[whole.index(b"hdlr") - 4 : whole.index(b"iloc") - 4]
    inside = _avif_box(b"idat", coded) if place == "idat" else b""
    data = head + _avif_box(b"meta", bytes(4) + first + places + kept + inside)
    assert len(data) < start or place == "idat"
    data = data if place == "idat" else data.ljust(start, b"\0") + coded
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # it is a picture
    with pytest.raises(Refused, match=r"takes \d+ MiB; at most 400 MiB"):
        check_header(data, Limits())


def _avif_with(added: bytes, side: int) -> bytes:
    """An AVIF of one colour whose data goes on with what is given."""
    data = LARGE["avif rgb"](side, side)
    place = data.index(b"iloc") + 18
    start = int.from_bytes(data[place : place + 4])
    longer = struct.pack(">II", start, len(data) + len(added) - start)
    return data.replace(data[place : place + 8], longer) + added


def test_frames_that_an_avif_may_hold_at_once_count() -> None:
    """Its decoder keeps up to eight, as later ones may refer to them."""
    data = _avif_with(b"", 1000)
    frames = data[data.index(b"mdat") + 4 :]
    told = [check_header(_avif_with(more, 1000), Limits()) for more in (b"", 8 * frames)]
    assert told[1].decoding_bytes > 3 * told[0].decoding_bytes


def test_an_avif_of_many_parts_costs_nothing_to_refuse() -> None:
    many = _avif_with(b"\x0a\0" * 100_000, 64)
    with pytest.raises(Refused, match="far more parts") as refusal:
        check_header(many, Limits())
    assert refusal.value.status_code == 422
    moving = [Image.new("RGB", (64, 64), grey) for grey in ("red", "blue")]
    buffer = io.BytesIO()
    moving[0].save(buffer, "AVIF", save_all=True, append_images=moving[1:])
    with pytest.raises(Refused, match="an AVIF that moves"):
        check_header(buffer.getvalue(), Limits())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process its memory")
def test_decoding_takes_no_more_memory_than_the_header_told() -> None:
    """In a process where every block of memory is given back at once."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("decoding_memory.py")), "2500", "1000"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == 2 * len(LARGE)
    assert not [each for each in measured if each[2] > each[1]], measured


def test_decoders_wait_for_memory() -> None:
    room = Room(100)
    order: list[str] = []

    def work() -> None:
        with room.take(60):
            order.append("second")

    with room.take(70):
        waiting = threading.Thread(target=work)
        waiting.start()
        with room.take(30):
            pass
        order.append("first")
    waiting.join()
    with room.take(1000):  # alone, it may take more
        pass
    assert order == ["first", "second"]


@pytest.mark.parametrize("costly", sorted(COSTLY))
def test_a_file_that_is_costly_for_its_size_is_refused_before_decoding(costly: str) -> None:
    with pytest.raises(Refused, match=r"more than 1|run-length") as refusal:
        check_header(COSTLY[costly](), Limits())
    assert "\n" not in refusal.value.detail


def test_pictures_with_large_metadata_and_many_scans_are_decoded() -> None:
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 60, 3), np.uint8))
    profile = bytes(900_000)
    for kind, options in (
        ("JPEG", {"icc_profile": profile, "exif": b"Exif\0\0" + bytes(60_000)}),
        ("JPEG", {"progressive": True, "quality": 95}),
        ("PNG", {"icc_profile": profile}),
        ("GIF", {"comment": bytes(50_000)}),
        ("WEBP", {"icc_profile": profile}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        assert decode_upload(buffer.getvalue(), LIMITS).size == (60, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_file_is_refused(kind: str) -> None:
    whole = encoded(kind, (64, 64))
    with pytest.raises(Refused) as refusal:
        decode_upload(whole[: len(whole) // 2], LIMITS)
    assert refusal.value.status_code == 422


@given(data=st.binary(max_size=400), kind=st.sampled_from(sorted(FORMATS)), at=st.integers(0, 400))
def test_damaged_bytes_are_decoded_or_refused_never_more(data: bytes, kind: str, at: int) -> None:
    whole = encoded(kind)
    damaged = whole[:at] + data + whole[at + len(data) :]
    try:
        image = decode_upload(damaged, LIMITS)
    except Refused as refusal:
        assert refusal.status_code in (413, 422)  # noqa: PT017
    else:
        assert image.mode in ("L", "RGB")


@pytest.mark.parametrize("text", [None, "", "  ", "{}"])
def test_no_filter_is_an_empty_one(text: str | None) -> None:
    assert parse_object(text, LIMITS.json_bytes, "where") == {}


@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.booleans()))
def test_a_json_object_is_taken_as_it_is(value: dict[str, int]) -> None:
    assert parse_object(json.dumps(value), LIMITS.json_bytes, "where") == value


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[1]", 422),
        ("nonsense", 422),
        ('{"a": NaN}', 422),
        ('{"a": "\\ud800"}', 422),
        ('{"a": -1e999}', 422),
        ('{"a": ' + 40 * "[" + 40 * "]" + "}", 422),
        ("[" * 20_000, 413),
        ("[" * 15_000, 422),
        (json.dumps({"a": "x" * 20_000}), 413),
    ],
)
def test_what_is_no_object_is_refused(text: str, status: int) -> None:
    with pytest.raises(Refused) as refusal:
        parse_object(text, LIMITS.json_bytes, "where")
    assert refusal.value.status_code == status
    assert refusal.value.detail.startswith("where: ")
