"""Uploaded bytes: what is decoded, and what is refused before and while decoding."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from costly_files import COSTLY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.uploads import FORMATS, check_header, decode_upload, parse_object

LIMITS = Limits(pixels=1_000_000)


def encoded(kind: str, size: tuple[int, int] = (24, 16)) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header announces a size that its few bytes do not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
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
    assert parse_object(text, LIMITS, "where") == {}


@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.booleans()))
def test_a_json_object_is_taken_as_it_is(value: dict[str, int]) -> None:
    assert parse_object(json.dumps(value), LIMITS, "where") == value


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
        parse_object(text, LIMITS, "where")
    assert refusal.value.status_code == status
    assert refusal.value.detail.startswith("where: ")
