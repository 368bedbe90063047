"""``hashlens index duplicates``: groups of images with nearly equal codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from hashlens.cli.index.options import INDEX, JSON
from hashlens.cli.opening import open_index
from hashlens.cli.progress import progress_bar
from hashlens.cli.search import printable, save_picture
from hashlens.errors import IndexStoreError

_GROUPS_SHOWN, _PICTURES_SHOWN = 50, 12


def duplicates_command(
    index: Path = INDEX,
    radius: int = typer.Option(2, min=0, help="Bits in which codes may differ; 0: equal codes."),
    as_json: bool = JSON,
    sheet: Path | None = typer.Option(None, help="Write a sheet of the groups, as PNG or JPEG."),
) -> None:
    """Find near-duplicates: groups of images with nearly equal codes.

    Example: hashlens index duplicates shop.idx --radius 2 --sheet twins.png
    """
    with open_index(index, read_only=True) as opened:
        with progress_bar("pairs found", None) as progress:
            found = opened.duplicates(radius, progress=progress)
        groups = [opened.records(group) for group in found.groups]
    if sheet is not None:
        _write_group_sheet(sheet, groups)
    if as_json:
        named = [{"ids": [r.id for r in g], "uris": [r.uri for r in g]} for g in groups]
        typer.echo(json.dumps({"radius": radius, "pairs": found.pairs, "groups": named}))
        return
    for group in groups:
        typer.echo("  ".join(f"{r.id}:{printable(r.uri)}" for r in group))
    images = sum(map(len, groups))
    typer.echo(f"{len(groups)} groups of {images} images, {found.pairs} pairs within {radius} bits")


def _write_group_sheet(path: Path, groups: list[Any]) -> None:
    from hashlens.data.images import load_image
    from hashlens.evaluation.sheets import Neighbour, SheetQuery, picture_sheet

    if not groups:
        raise IndexStoreError(f"{path}: no near-duplicates to draw; try a larger --radius")
    queries = [
        SheetQuery(
            first.uri,
            str(first.id),
            {"": [Neighbour(r.uri, str(r.id), r.label or "") for r in others[:_PICTURES_SHOWN]]},
        )
        for first, *others in groups[:_GROUPS_SHOWN]
    ]
    save_picture(picture_sheet(queries, load_image), path)
