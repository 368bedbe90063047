"""Tables, and pages with tables and pictures: one HTML file, and the same as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from hashlens.files import replace_file
from hashlens.report.plot import save_figure


class Page:
    """A page built from the top down; its pictures are written into the same folder."""

    def __init__(self, folder: Path, title: str, lead: str = "") -> None:
        self._folder, self._title = folder, title
        folder.mkdir(parents=True, exist_ok=True)
        self._html = [f"<h1>{escape(title)}</h1>"]
        self._markdown = [f"# {title}"]
        if lead:
            self._html.append(f'<p class="lead">{escape(lead)}</p>')
            self._markdown.append(lead)

    def heading(self, text: str) -> None:
        """Start a section."""
        self._html.append(f"<h2>{escape(text)}</h2>")
        self._markdown.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Add plain text."""
        self._html.append(f"<p>{escape(text)}</p>")
        self._markdown.append(text)

    def table(self, table: Table, caption: str = "") -> None:
        """Add a table, with a line under it."""
        html = table.html()
        if caption:
            html = html.replace("<table>", f"<table><caption>{escape(caption)}</caption>", 1)
        self._html.append(f'<div class="scroll">{html}</div>')
        self._markdown += [table.markdown(), *([caption] if caption else [])]

    def picture(self, picture: Image.Image, name: str, alt: str, caption: str = "") -> None:
        """Write NAME.png, and add it."""
        path = self._folder / f"{name}.png"
        replace_file(path, partial(picture.save, optimize=True))
        self._embed(path, "image/png", alt, caption, f' width="{picture.width}"')

    def figure(self, figure: Any, name: str, alt: str, caption: str = "") -> None:
        """Write a plot as NAME.svg and NAME.png, and add it."""
        self._embed(save_figure(figure, self._folder, name), "image/svg+xml", alt, caption)

    def _embed(self, path: Path, kind: str, alt: str, caption: str, size: str = "") -> None:
        source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._html.append(f'<figure><img src="{source}" alt="{escape(alt)}"{size}>{note}</figure>')
        self._markdown += [f"![{alt}]({path.name})", *([caption] if caption else [])]

    def commands(self, lines: str) -> None:
        """Add commands, as they are typed."""
        self._html.append(f"<pre><code>{escape(lines)}</code></pre>")
        self._markdown.append(f"```sh\n{lines}\n```")

    def write_json(self, values: Mapping[str, Any], name: str) -> None:
        """Write NAME.json next to the page."""
        text = json.dumps(values, indent=2, ensure_ascii=False)
        replace_file(self._folder / f"{name}.json", text + "\n")

    def write(self, name: str = "report") -> Path:
        """Write NAME.html and NAME.md; return the path of the first."""
        style = (files(__package__) / "page.css").read_text(encoding="utf-8")
        html = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>\n{style}</style></head>\n<body>\n"
            + "\n".join(self._html)
            + "\n</body></html>\n"
        )
        page = self._folder / f"{name}.html"
        replace_file(page, html)
        replace_file(self._folder / f"{name}.md", "\n\n".join(self._markdown) + "\n")
        return page


Cell: TypeAlias = "str | int | float | None"


@dataclass(frozen=True)
class Table:
    """Rows under headers; the first column is text, the others are numbers.

    Text is shown as it is, a float with ``digits`` decimals, None as a dash.
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
