"""``hashlens index remove`` and ``update``: images of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from hashlens.cli.index.options import INDEX, JSON, MODEL, tell
from hashlens.cli.opening import open_index, parse_metadata
from hashlens.cli.search import printable
from hashlens.errors import InvalidInputError


def remove_command(
    index: Path = INDEX,
    images: list[str] = typer.Argument(
        ..., metavar="IMAGE", help="Ids, or paths and URIs as the index has them."
    ),
    as_json: bool = JSON,
) -> None:
    """Take images out of the index; the files stay.

    Example: hashlens index remove shop.idx 17 photos/old.jpg
    """
    from hashlens.file_uris import path_uri

    with open_index(index, shards=True) as opened:
        by_uri = {} if all(i.isdecimal() for i in images) else opened.uris()
        ids: set[int] = set()
        for image in images:
            # The empty name is that of all images from memory, so it names none.
            found = image and (by_uri.get(image) or by_uri.get(path_uri(image)))
            if found:
                ids.update(found)
            elif image.isascii() and image.isdecimal():
                ids.add(int(image))
            else:
                raise InvalidInputError(f"{image!r}: not in {index}; nothing was removed")
        opened.remove(sorted(ids))
        left = len(opened)
    result = {"index": str(index), "removed": sorted(ids), "images": left}
    tell(result, f"removed {len(ids)}; {index} holds {left} images", as_json)


def update_command(
    index: Path = INDEX,
    image_id: int = typer.Argument(..., metavar="ID", help="An image of the index."),
    label: str | None = typer.Option(None, help="New label; an empty one takes it away."),
    metadata: list[str] = typer.Option(
        [], "--metadata", help="key=value; keys that are not named stay as they are."
    ),
    image: Path | None = typer.Option(None, help="Picture to take its place."),
    model: Path | None = MODEL,
    as_json: bool = JSON,
) -> None:
    """Change an image's label or metadata, or put another picture in its place.

    Example: hashlens index update shop.idx 17 --label boots --metadata price=20
    """
    changes: dict[str, Any] = {}
    if label is not None:
        changes["label"] = label or None
    if not changes and not metadata and image is None:
        raise typer.BadParameter("expected --label, --metadata or --image")
    with open_index(index, model, encode=image is not None) as opened:
        if metadata:
            changes["metadata"] = {**opened.get(image_id).metadata, **parse_metadata(metadata)}
        opened.update(image_id, image=image, **changes)
        record = opened.get(image_id)
    tell(record._asdict(), f"updated {image_id}: {printable(str(record._asdict()))}", as_json)
