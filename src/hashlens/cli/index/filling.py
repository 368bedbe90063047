"""``hashlens index create``, ``add`` and ``sync``: images into an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hashlens.cli.index.options import INDEX, JSON, METADATA, MODEL, SOURCES, STRICT, tell
from hashlens.cli.opening import (
    open_images,
    open_index,
    parse_metadata,
    show_skipped,
    skipped_json,
)
from hashlens.cli.progress import progress_bar

if TYPE_CHECKING:
    from hashlens.index.index import HashIndex


def create_command(
    index: Path = typer.Argument(..., help="Folder to make."),
    sources: list[str] = SOURCES,
    model: Path = typer.Option(..., help="Model directory or .onnx file that encodes."),
    features: str = typer.Option("float16", help="How features are stored: float16 or float32."),
    metadata: list[str] = METADATA,
    strict: bool = STRICT,
    shards: int | None = typer.Option(
        None, min=1, help="Make an index in so many shards, encoded on a Ray cluster."
    ),
    ray: str | None = typer.Option(
        None, help="Address of the Ray cluster, or local; by default RAY_ADDRESS, else local."
    ),
    as_json: bool = JSON,
) -> None:
    """Make an index, and add images to it.

    Stopped while it adds, it keeps what it has; `hashlens index add` goes on. In shards, the same
    command goes on.

    Example: hashlens index create shop.idx photos/ --model model/
    """
    if ray is not None and shards is None:
        raise typer.BadParameter("--ray goes with --shards, for example --shards 4")
    if shards is not None:
        from hashlens.cli.sharded import create_in_shards

        if len(sources or []) != 1 or metadata or strict or features != "float16":
            raise typer.BadParameter(
                "--shards takes one SOURCE, without --metadata, --strict or --features"
            )
        create_in_shards(index, sources[0], model, shards, ray, as_json)
        return
    from hashlens.index.index import HashIndex
    from hashlens.index.schema import FEATURE_TYPES
    from hashlens.models.encoder import Encoder

    if features not in FEATURE_TYPES:
        raise typer.BadParameter(f"--features: expected float16 or float32, got {features!r}")
    shared = parse_metadata(metadata)
    images = open_images(sources or [])
    encoder = Encoder.load(model)
    with HashIndex.create(index, encoder, features=features, model=model) as made:
        _add(made, images.uris, images.labels, shared, strict, as_json)


def add_command(
    index: Path = INDEX,
    sources: list[str] = SOURCES,
    label: str | None = typer.Option(None, help="Label of all these images."),
    metadata: list[str] = METADATA,
    model: Path | None = MODEL,
    strict: bool = STRICT,
    as_json: bool = JSON,
) -> None:
    """Add images that are not in the index yet.

    Example: hashlens index add shop.idx new-photos/ --metadata season=spring
    """
    shared = parse_metadata(metadata)
    if not sources:
        raise typer.BadParameter("expected at least one image, folder or other source")
    images = open_images(sources)
    labels = images.labels if label is None else [label] * len(images.uris)
    with open_index(index, model, encode=True, shards=True) as opened:
        _add(opened, images.uris, labels, shared, strict, as_json)


def _add(
    index: HashIndex,
    uris: list[str],
    labels: Sequence[str | None],
    metadata: dict[str, Any],
    strict: bool,
    as_json: bool,
) -> None:
    known, new = set(index.uris()), []
    for place, uri in enumerate(uris):
        if uri not in known:
            new.append(place)
            known.add(uri)
    with progress_bar("adding", len(new)) as progress:
        report = index.add(
            [uris[place] for place in new],
            [labels[place] for place in new],
            [metadata] * len(new) if metadata else None,
            progress=progress,
            strict=strict,
        )
    show_skipped([] if as_json else report.skipped)
    result = {
        "index": str(index.path),
        "added": len(report.ids),
        "skipped": skipped_json(report.skipped),
        "already_there": len(uris) - len(new),
        "images": len(index),
    }
    text = f"added {len(report.ids)}, skipped {len(report.skipped)}"
    if len(new) < len(uris):
        text += f", {len(uris) - len(new)} were there already"
    tell(result, f"{text}; {index.path} holds {len(index)} images", as_json)


def sync_command(
    index: Path = INDEX,
    folder: Path = typer.Argument(..., help="Folder of images; sub-folders name classes."),
    model: Path | None = MODEL,
    strict: bool = STRICT,
    as_json: bool = JSON,
) -> None:
    """Make the index say what a folder holds, encoding only what is new or changed.

    Images of the index that came from other places stay. Stopped, it goes on where it was.

    Example: hashlens index sync shop.idx photos/
    """
    from hashlens.data.folders import list_images

    root = Path(os.path.abspath(folder.expanduser()))
    paths = list_images(root)
    with open_index(index, model, encode=True) as opened, progress_bar("encoding", None) as bar:
        done = 0

        def progress(now: int, total: int) -> None:
            nonlocal done
            bar(now - done)
            done = now

        report = opened.sync(
            root,
            paths,
            [_class_of(path, root) for path in paths],
            progress=progress,
            strict=strict,
        )
        images = len(opened)
    show_skipped([] if as_json else report.skipped)
    counts = {key: value for key, value in report._asdict().items() if key != "skipped"}
    result = {"index": str(index), **counts, "skipped": skipped_json(report.skipped)}
    counts["skipped"] = len(report.skipped)
    text = ", ".join(f"{value} {key}" for key, value in counts.items())
    tell({**result, "images": images}, f"{text}; {index} holds {images} images", as_json)


def _class_of(path: Path, root: Path) -> str | None:
    """Name of the sub-folder that an image lies in, as for a class folder."""
    parts = path.relative_to(root).parts
    if len(parts) < 2:
        return None
    return os.fsencode(parts[0]).decode("utf-8", "backslashreplace")
