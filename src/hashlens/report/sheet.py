"""Picture sheets: queries with their nearest pictures, right and wrong ones in frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

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
    left = max(tile, _bits_width(tile)) + 2 * _GAP
    heights = [_query_height(query, tile, row_height) for query in queries]
    width = _GAP + left + name_width + columns * cell + _GAP
    sheet = Image.new("RGB", (width, _GAP + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.fontmode = "L"
    top = _GAP
    for position, (query, height) in enumerate(zip(queries, heights, strict=True)):
        if position:
            draw.line((_GAP, top - _GAP, width - _GAP, top - _GAP), fill=(210, 210, 210))
        _draw_tile(
            sheet, _GAP, top, tile, Neighbour(query.uri, f"{query.title}: {query.label}"), load
        )
        if query.bits is not None:
            _draw_bits(draw, _GAP, top + tile + _LINE + 6, tile, query.bits)
        for line, (name, nearest) in enumerate(query.nearest.items()):
            y = top + line * row_height
            draw.text((_GAP + left, y + tile // 2 - 8), name, fill=_INK, font=font)
            for column, neighbour in enumerate(nearest):
                x = _GAP + left + name_width + column * cell
                _draw_tile(sheet, x, y, tile, neighbour, load)
        top += height
    return sheet


def _bits_width(tile: int) -> int:
    return 32 * max(4, tile // 32)


def _bits_size(count: int, tile: int) -> tuple[int, int, int]:
    """Squares per line, side of a square, height of all lines."""
    across = 8 if count <= 64 else 16 if count <= 256 else 32
    side = max(4, _bits_width(tile) // across)
    return across, side, side * -(-count // across)


def _query_height(query: SheetQuery, tile: int, row_height: int) -> int:
    own = tile + _LINE + 6
    if query.bits is not None:
        own += _bits_size(len(query.bits), tile)[2] + _LINE
    return max(own, row_height * len(query.nearest)) + 2 * _GAP


def _draw_bits(draw: ImageDraw.ImageDraw, x: int, y: int, tile: int, bits: Any) -> None:
    across, side, height = _bits_size(len(bits), tile)
    for j, bit in enumerate(bits):
        left, top = x + j % across * side, y + j // across * side
        box = (left, top, left + side - 2, top + side - 2)
        draw.rectangle(box, fill=_INK if bit else None, outline=_QUIET)
    font = ImageFont.load_default(_TEXT_SIZE - 2)
    draw.text((x, y + height + 2), f"{len(bits)} bits", fill=_QUIET, font=font)


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
        fitted = _fitted(picture.convert("RGB"), inner)
        offset = (tile - fitted.width) // 2, (tile - fitted.height) // 2
        sheet.paste(fitted, (x + offset[0], y + offset[1]))
    if neighbour.right is not None:
        colour = RIGHT if neighbour.right else WRONG
        draw.rectangle(box, outline=colour, width=_FRAME)
        _draw_mark(draw, x + tile - 11, y + 11, neighbour.right)
    font = ImageFont.load_default(_TEXT_SIZE)
    for line, text in enumerate((neighbour.label, neighbour.caption)):
        place = (x, y + tile + 2 + line * _LINE)
        draw.text(place, _cut(text, font, tile), fill=_QUIET if line else _INK, font=font)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """Scale to fit a square; the shape stays, and the pixels of a small picture stay visible."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.resize(size, method)


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
