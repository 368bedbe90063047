"""``hashlens index create --shards``: an index in shards, encoded on a Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hashlens.cli.opening import show_skipped, skipped_json
from hashlens.cli.progress import progress_bar


def create_in_shards(
    index: Path, source: str, model: Path, shards: int, address: str | None, as_json: bool
) -> None:
    """Encode a source into a new index in shards, or go on with one that was stopped."""
    from hashlens.distributed.encoding import create_sharded, open_images
    from hashlens.protocols import Skipped

    images = open_images(source)
    with progress_bar("encoding", len(images.uris)) as progress:
        catalogue = create_sharded(
            index, model, images, shards=shards, address=address, progress=progress
        )
    skipped = [Skipped(-1, uri, why) for shard in catalogue.shards for uri, why in shard.skipped]
    if as_json:
        result = {
            "index": str(index),
            "added": catalogue.next_id,
            "shards": {shard.folder: shard.count for shard in catalogue.shards},
            "skipped": skipped_json(skipped),
        }
        typer.echo(json.dumps(result))
        return
    show_skipped(skipped)
    typer.echo(
        f"added {catalogue.next_id}, skipped {len(skipped)}; {index} has {shards} shards of "
        f"{min(s.count for s in catalogue.shards)} to {max(s.count for s in catalogue.shards)}"
    )
