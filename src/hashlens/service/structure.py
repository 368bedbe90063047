"""What makes an upload costly for its size, counted before a decoder meets it.

A file of some kilobytes can name thousands of scans over 50 million pixels, or hold a million
empty segments that a decoder walks one by one. Pictures that people have are far from the bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from PIL import JpegImagePlugin

SCANS = 100
"""Passes of a progressive JPEG over all its pixels; encoders write about 10."""
SEGMENTS = 1_000
"""Of a JPEG before its first scan: a profile of 16 MiB takes 250."""
CHUNKS = 10_000
"""Of a PNG: 16 MiB are about 2,000. Of a GIF, its blocks before the first image."""

_SCAN = 0xFFDA


def find_excess(data: bytes) -> str | None:
    """What a file has too many of, in a few words; None for an ordinary one.

    Parameters
    ----------
    data : bytes
        Content of a file of any kind.
    """
    if data.startswith(b"\xff\xd8"):
        # inside compressed data 0xFF is always followed by 0, so this counts scans
        if data.count(_SCAN.to_bytes(2)) > SCANS:
            return f"more than {SCANS} scans"
        return _more_than(SEGMENTS, "segments", _jpeg_segments(data))
    if data.startswith(b"\x89PNG"):
        return _more_than(CHUNKS, "chunks", _png_chunks(data))
    if data.startswith(b"GIF8"):
        return _more_than(CHUNKS, "blocks", _gif_blocks(data))
    return None


def _more_than(count: int, what: str, parts: Iterator[int]) -> str | None:
    over = next(islice(parts, count, None), None) is not None
    return f"more than {count:,} {what}" if over else None


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Position of each step that Pillow takes up to the first scan; padding is a step a byte."""
    at = 2
    while at + 4 <= len(data):
        yield at
        marker = int.from_bytes(data[at : at + 2])
        if marker == _SCAN:
            return
        if data[at] != 0xFF or marker == 0xFFFF:
            at += 1
            continue
        _, _, has_length = JpegImagePlugin.MARKER.get(marker, ("", "", None))
        at += 2 + (int.from_bytes(data[at + 2 : at + 4]) if has_length else 0)


def _png_chunks(data: bytes) -> Iterator[int]:
    """Position of each chunk."""
    at = 8
    while at < len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4])


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Position of each block and sub-block up to the first image."""
    if len(data) < 13:
        return
    at = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
    while at < len(data) and data[at] not in b",;":
        yield at
        if data[at] != ord("!"):
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1
