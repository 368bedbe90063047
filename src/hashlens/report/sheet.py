"""Picture sheets: queries with their nearest pictures, right and wrong ones in frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hashlens.errors import ImageError, InvalidInputError

Load = Callable[[str], Image.Image]

# Okabe-Ito blue and vermilion, which colour-blind readers can tell apart; the mark also does
# so in grey print.
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
_INK, _PAPER, _QUIET = (26, 26, 26), (255, 255, 255), (120, 120, 120)

_GAP, _FRAME, _LINE = 10, 4, 19
_TEXT_SIZE = 14


@dataclass(frozen=True)
class Neighbour:
    """One of a query's nearest pictures: what ``load`` opens, and two lines under it.

    The frame is that of a right or a wrong one; None: no frame.
    """

    uri: str
    label: str
    caption: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class SheetQuery:
    """A query and, for each method, a row of its nearest pictures.

    ``bits`` of its code are drawn as squares, filled where a bit is 1. ``title`` says what the
    picture is, before its label.
    """

    uri: str
    label: str
    nearest: Mapping[str, Sequence[Neighbour]]
    bits: Any = None
    title: str = "query"


def picture_sheet(queries: Sequence[SheetQuery], load: Load, *, tile: int = 120) -> Image.Image:
    """Draw queries, one below the other, with their nearest pictures to the right."""
    if not queries:
        raise InvalidInputError("a picture sheet needs at least one query, got none")
    font = ImageFont.load_default(_TEXT_SIZE)
    names = [name for query in queries for name in query.nearest]
    name_width = max([int(font.getlength(name)) for name in names] or [0]) + _GAP
    columns = max([len(row) for query in queries for row in query.nearest.values()] or [0])
    cell, row_height = tile + _GAP, tile + 2 * _LINE + _GAP
    bits_width = 32 * max(4, tile // 32)
    left = max(tile, bits_width) + 3 * _GAP
    rows = []
    for query in queries:
        bits = None if query.bits is None else _bits_picture(query.bits, bits_width)
        own = tile + _LINE + 6 + (bits.height if bits else 0)
        height = max(own, row_height * len(query.nearest)) + 2 * _GAP
        row = Image.new("RGB", (left + name_width + columns * cell + _GAP, height), _PAPER)
        rows.append(row)
        _draw_tile(row, _GAP, 0, tile, Neighbour(query.uri, f"{query.title}: {query.label}"), load)
        if bits:
            row.paste(bits, (_GAP, tile + _LINE + 6))
        for line, (name, nearest) in enumerate(query.nearest.items()):
            y = line * row_height
            ImageDraw.Draw(row).text((left, y + tile // 2 - 8), name, fill=_INK, font=font)
            for column, neighbour in enumerate(nearest):
                _draw_tile(row, left + name_width + column * cell, y, tile, neighbour, load)
    sheet = Image.new("RGB", (rows[0].width, _GAP + sum(row.height for row in rows)), _PAPER)
    top = _GAP
    for row in rows:
        sheet.paste(row, (0, top))
        if row is not rows[0]:
            line_at = (_GAP, top - _GAP, row.width - _GAP, top - _GAP)
            ImageDraw.Draw(sheet).line(line_at, fill=(210, 210, 210))
        top += row.height
    return sheet


def _bits_picture(bits: Any, width: int) -> Image.Image:
    """Squares, filled where a bit is 1, with their number below."""
    across = 8 if len(bits) <= 64 else 16 if len(bits) <= 256 else 32
    side = width // across
    height = side * -(-len(bits) // across)
    picture = Image.new("RGB", (width, height + _LINE), _PAPER)
    draw = ImageDraw.Draw(picture)
    for j, bit in enumerate(bits):
        x, y = j % across * side, j // across * side
        box = (x, y, x + side - 2, y + side - 2)
        draw.rectangle(box, fill=_INK if bit else None, outline=_QUIET)
    font = ImageFont.load_default(_TEXT_SIZE - 2)
    draw.text((0, height + 2), f"{len(bits)} bits", fill=_QUIET, font=font)
    return picture


def _draw_tile(
    sheet: Image.Image, x: int, y: int, tile: int, neighbour: Neighbour, load: Load
) -> None:
    draw = ImageDraw.Draw(sheet)
    box = (x, y, x + tile - 1, y + tile - 1)
    try:
        picture = load(neighbour.uri)
    except ImageError:
        draw.rectangle(box, outline=_QUIET)
        draw.line((x, y, x + tile - 1, y + tile - 1), fill=_QUIET)
        draw.line((x, y + tile - 1, x + tile - 1, y), fill=_QUIET)
    else:
        inner = tile - 2 * _FRAME
        # The pixels of a small picture stay visible.
        small = inner >= 2 * max(picture.size)
        method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        fitted = ImageOps.pad(picture.convert("RGB"), (inner, inner), method, _PAPER)
        sheet.paste(fitted, (x + _FRAME, y + _FRAME))
    if neighbour.right is not None:
        colour = RIGHT if neighbour.right else WRONG
        draw.rectangle(box, outline=colour, width=_FRAME)
        _draw_mark(draw, x + tile - 11, y + 11, neighbour.right)
    font = ImageFont.load_default(_TEXT_SIZE)
    for line, text in enumerate((neighbour.label, neighbour.caption)):
        place = (x, y + tile + 2 + line * _LINE)
        draw.text(place, _cut(text, font, tile), fill=_QUIET if line else _INK, font=font)


def _draw_mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A tick or a cross on a disc at a tile's upper right corner."""
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=RIGHT if right else WRONG)
    if right:
        draw.line([(x - 5, y), (x - 1, y + 5), (x + 6, y - 5)], fill=_PAPER, width=3)
    else:
        draw.line([(x - 5, y - 5), (x + 5, y + 5)], fill=_PAPER, width=3)
        draw.line([(x - 5, y + 5), (x + 5, y - 5)], fill=_PAPER, width=3)


def _cut(text: str, font: Any, width: int) -> str:
    """Text shortened with an ellipsis to fit a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
