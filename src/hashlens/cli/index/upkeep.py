"""``hashlens index info``, ``verify`` and ``compact``: the index itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from hashlens.cli.index.options import INDEX, JSON, tell
from hashlens.cli.opening import open_index
from hashlens.cli.progress import progress_bar
from hashlens.cli.search import printable


def info_command(index: Path = INDEX, as_json: bool = JSON) -> None:
    """Say what an index holds.

    Example: hashlens index info shop.idx
    """
    with open_index(index, read_only=True, shards=True) as opened:
        info = asdict(opened.info())
        labels = opened.label_counts()
    lines = [f"{key.replace('_', ' '):<15} {printable(str(value))}" for key, value in info.items()]
    lines.append(f"{'labels':<15} {sum(label is not None for label in labels)}")
    named = {label: count for label, count in labels.items() if label is not None}
    unlabelled = labels.get(None, 0)
    tell({**info, "labels": named, "unlabelled": unlabelled}, "\n".join(lines), as_json)


def verify_command(index: Path = INDEX, as_json: bool = JSON) -> None:
    """Read every byte against its checksum, and name what is damaged.

    Example: hashlens index verify shop.idx
    """
    with open_index(index, read_only=True) as opened:
        info = opened.info()
        with progress_bar("reading", 3 * (info.images + info.removed)) as progress:
            damage = opened.verify(progress)
    result = {"index": str(index), "intact": not damage, "damage": damage}
    tell(result, "\n".join(damage) or f"{index}: intact, {info.images} images", as_json)
    if damage:
        raise typer.Exit(1)


def compact_command(index: Path = INDEX, as_json: bool = JSON) -> None:
    """Free the space of removed images; searches go on meanwhile.

    Example: hashlens index compact shop.idx
    """
    with open_index(index) as opened:
        before = opened.info().bytes_on_disk
        dropped = opened.compact()
        after = opened.info().bytes_on_disk
    result = {"index": str(index), "dropped": dropped, "bytes": after, "bytes_before": before}
    text = f"dropped {dropped} rows; {before:,} bytes before, {after:,} now"
    tell(result, text, as_json)
