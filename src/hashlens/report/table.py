"""A small table as text, Markdown or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

Cell: TypeAlias = "str | int | float | None"


@dataclass(frozen=True)
class Table:
    """Rows under headers; the first column is text, the others are numbers.

    Attributes
    ----------
    headers : sequence of str
        One per column.
    rows : sequence of sequences
        Cells: text as it is, floats with ``digits`` decimals, None as a dash.
    digits : int
        Decimals of a float.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 4

    @classmethod
    def of(
        cls, rows: Iterable[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]
    ) -> Table:
        """Some values of each row; columns are triples of header, key and format."""
        return cls(
            [header for header, _, _ in columns],
            [[format(row[key], form) for _, key, form in columns] for row in rows],
        )

    def text(self) -> str:
        """Columns aligned by spaces, for a terminal."""
        cells = [list(self.headers), *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.headers))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def markdown(self) -> str:
        """A Markdown table, aligned so that its source can be read too."""
        cells = [
            [cell.replace("|", "\\|") for cell in row]
            for row in [list(self.headers), *self._cells()]
        ]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.headers))]
        lines = [f"| {' | '.join(_aligned(row, widths))} |" for row in cells]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])

    def html(self) -> str:
        """A ``<table>`` element; every cell is escaped."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.headers)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[list[str]]:
        return [[_shown(cell, self.digits) for cell in row] for row in self.rows]


def _shown(cell: Cell, digits: int) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = row[0].ljust(widths[0])
    return [first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
