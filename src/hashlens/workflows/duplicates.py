"""``hashlens index duplicates``: exact copies, and pictures that look alike; a page of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens.codes.pairs import group_pairs
from hashlens.data.opening import load_image
from hashlens.errors import HashlensError
from hashlens.files import is_remote, parse_row, uri_path
from hashlens.index.hash_index import HashIndex
from hashlens.index.protocol import Index
from hashlens.report.page import Page
from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet
from hashlens.types import Ids, Record
from hashlens.workflows.score import load_small

_SIDE = 16  # pixels of the small grey pictures that are compared
_ALIKE = 0.9  # correlation of two of them: 0.93 to 1 for other sizes, qualities and small crops
_BLOCK = 2048  # pictures that are compared with all others of their group at a time
_DRAWN, _DRAWN_OTHERS = 50, 12

Group = list[Record]


@dataclass(frozen=True)
class Duplicates:
    """What may be there twice; each group begins with the image to keep, the largest file.

    ``near`` are pictures that look alike among those with near codes, without the ``copies``,
    whose files are equal. Pictures ``unread`` could not be compared. Where no picture could be
    read, as in an index of vectors, ``near`` is by codes alone (``by_codes``).
    """

    copies: list[Group]
    near: list[Group]
    pairs: int  # with near codes
    unread: int
    by_codes: bool

    @property
    def extra(self) -> int:
        """Images that could go."""
        return sum(len(group) - 1 for group in (*self.copies, *self.near))


def find_duplicates(
    index: Index,
    radius: int,
    *,
    progress: Callable[[int], None] | None = None,
    compared: Callable[[int], None] = lambda pictures: None,
) -> Duplicates:
    """Groups with codes at most ``radius`` bits apart, of those the pictures that look alike.

    Equal codes may mean the same class, not the same picture, so each group's pictures are
    compared: grey, 16 x 16, by correlation. ``compared`` is called with pictures read.
    """
    found = index.duplicates(radius, progress=progress)
    same = index.copies() if isinstance(index, HashIndex) else []
    copies = [_largest_first(index.records(ids)) for ids in same]
    again = {record.id for group in copies for record in group[1:]}
    near: list[Group] = []
    unread = read = 0
    candidates = [[r for r in index.records(ids) if r.id not in again] for ids in found.groups]
    candidates = [group for group in candidates if len(group) > 1]
    for group in candidates:
        small = [_small(record.uri) for record in group]
        known = [place for place, picture in enumerate(small) if picture is not None]
        unread, read = unread + len(group) - len(known), read + len(known)
        compared(len(group))
        if len(known) > 1:
            pictures = np.stack([picture for picture in small if picture is not None])
            for rows in group_pairs(len(known), _alike(pictures))[0]:
                near.append(_largest_first([group[known[row]] for row in rows.tolist()]))
    by_codes = bool(candidates) and not read
    return Duplicates(copies, candidates if by_codes else near, found.pairs, unread, by_codes)


def _small(uri: str) -> NDArray[np.float32] | None:
    """A picture as a vector of zero mean and unit length; None if it cannot be read."""
    try:
        picture = load_image(uri, size_hint=_SIDE)
    except HashlensError:
        return None
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, np.float32).ravel()
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


def _alike(pictures: NDArray[np.float32]) -> Iterator[tuple[Ids, Ids]]:
    for start in range(0, len(pictures), _BLOCK):
        likeness = pictures[start : start + _BLOCK] @ pictures[start:].T
        left, right = np.nonzero(np.triu(likeness >= _ALIKE, 1))
        yield left + start, right + start


def _largest_first(group: Sequence[Record]) -> Group:
    return sorted(group, key=lambda record: (-_bytes(record.uri), record.id))


def _bytes(uri: str) -> int:
    """Size of an image's own file; 0 where it has none."""
    if is_remote(uri) or parse_row(uri) is not None:
        return 0
    try:
        return os.path.getsize(uri_path(uri))
    except OSError:
        return 0


def group_sheet(groups: Sequence[Group]) -> Image.Image:
    """Each group as a row: the image to keep, then the others."""
    queries = []
    for keep, *others in groups[:_DRAWN]:
        tiles = [Neighbour(r.uri, _caption(r), r.label or "") for r in others[:_DRAWN_OTHERS]]
        queries.append(SheetQuery(keep.uri, _caption(keep), {"": tiles}, title="keep"))
    return picture_sheet(queries, load_small)


def _caption(record: Record) -> str:
    size = _bytes(record.uri)
    return f"{record.id}" + (f", {size / 1000:,.0f} kB" if size else "")


def write_duplicates(found: Duplicates, out: Path) -> Path:
    """Write duplicates.html with the pictures side by side; the page's path."""
    page = Page(
        out,
        "Pictures that are there twice",
        f"{found.extra:,} images could go. The first of each row is the largest file.",
    )
    for groups, name, heading in (
        (found.copies, "copies", "Files with equal content"),
        (found.near, "near", "Near codes" if found.by_codes else "Pictures that look alike"),
    ):
        if groups:
            page.heading(f"{heading} ({len(groups):,})")
            page.picture(group_sheet(groups), name, heading, f"The first {_DRAWN} groups at most.")
            page.commands("\n".join(r.uri for _, *others in groups for r in others))
    return page.write("duplicates")
