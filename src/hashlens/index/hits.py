"""What a search returns: a list of hits that a notebook shows as pictures."""

from __future__ import annotations

import base64
import html
import io

from hashlens.errors import HashlensError
from hashlens.types import Hit

_SIDE = 112
_SHOWN = 50


class Hits(list[Hit]):
    """The hits of one query, nearest first.

    A list like any other; ``pandas.DataFrame(hits)`` makes a table of it.
    """

    def _repr_html_(self) -> str:
        cells = [_cell(hit) for hit in self[:_SHOWN]]
        if len(self) > _SHOWN:
            cells.append(f"<div>and {len(self) - _SHOWN} more</div>")
        style = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-end"
        return f'<div style="{style}">{"".join(cells) or "no hits"}</div>'


def _cell(hit: Hit) -> str:
    """A hit as HTML: its picture, or its name where there is none, and what is known of it."""
    picture = _thumbnail(hit.uri)
    if picture is None:
        picture = f"<code>{html.escape(hit.uri.rpartition('/')[2] or 'no file')}</code>"
    distance = f"{hit.hamming} bits"
    if hit.euclidean is not None:
        distance += f", {hit.euclidean:.4g}"
    lines = [f"{hit.id}", hit.label or "", distance]
    text = "<br>".join(html.escape(line) for line in lines if line)
    style = f"width:{_SIDE}px;overflow-wrap:anywhere;font-size:12px"
    return f'<figure style="margin:0;{style}">{picture}<figcaption>{text}</figcaption></figure>'


def _thumbnail(uri: str) -> str | None:
    """A small copy of the picture, embedded; None where it cannot be read."""
    from hashlens.data.opening import load_image

    if not uri:
        return None
    try:
        picture = load_image(uri, size_hint=_SIDE)
    except HashlensError:
        return None
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" title="{html.escape(uri)}">'
