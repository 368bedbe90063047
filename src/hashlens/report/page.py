"""A page with tables and pictures: one HTML file that needs no other, and the same as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hashlens.files import replace_file
from hashlens.report.plot import save_figure
from hashlens.report.table import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #5a5a5a; --rule: #d5d5d5;
        --card: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --paper: #161616; --quiet: #a5a5a0; --rule: #3c3c3c; --card: #232323; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.lead, figcaption, caption { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
caption { caption-side: bottom; text-align: left; padding-top: .4rem; font-size: .9rem; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; padding: .5rem; border-radius: 4px;
             border: 1px solid var(--rule); box-sizing: border-box; }
figcaption { font-size: .9rem; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; }
@media print { :root { --ink: #000; --paper: #fff; --quiet: #444; --rule: #bbb; --card: #f5f5f5; }
  body { max-width: none; margin: 0; } figure, table { break-inside: avoid; } }
"""


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
        html = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(self._html)
            + "\n</body></html>\n"
        )
        page = self._folder / f"{name}.html"
        replace_file(page, html)
        replace_file(self._folder / f"{name}.md", "\n\n".join(self._markdown) + "\n")
        return page
