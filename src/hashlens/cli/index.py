"""``hashlens index``: make, fill, change and check an index."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hashlens.cli.opening import (
    GivenImages,
    make_folder,
    open_given,
    open_index,
    open_model,
    parse_metadata,
    passed_over,
)
from hashlens.cli.options import (
    EXCLUDE,
    INDEX,
    INDEX_MODEL,
    READING,
    STRICT,
    Answer,
    commands,
    note,
)
from hashlens.cli.search import printable, save_picture
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.report.progress import ProgressBar

if TYPE_CHECKING:
    from hashlens.index.protocol import Index


index_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make, fill, change and check an index."
)
on_index = commands(index_app)


SOURCES = typer.Argument(
    None,
    metavar="SOURCE",
    help="Image files, class folders, parquet or .npy files, FOLDER#PART, digits or hub names.",
)
METADATA = typer.Option(
    [],
    "--metadata",
    help="key=value for all these images, or a .csv, .tsv or .jsonl file whose rows name them.",
)


METADATA_COLUMNS = typer.Option(
    None,
    "--metadata-columns",
    metavar="NAME,NAME",
    help="Of a table's other columns, those that become metadata. [default: all]",
)


@on_index("create")
def create_command(
    index: Path = typer.Argument(..., help="Folder to make."),
    sources: list[str] = SOURCES,
    model: Path = typer.Option(..., help="Folder of a model, or an exported .onnx file."),
    features: str = typer.Option(
        "float16",
        help="How features are stored: float16, float32, or none to keep codes alone, which "
        "search with --mode acs and bcs.",
    ),
    metadata: list[str] = METADATA,
    metadata_columns: str | None = METADATA_COLUMNS,
    reading: dict[str, Any] = READING,
    shards: int | None = typer.Option(
        None, min=1, help="Make an index in so many shards, encoded on a Ray cluster."
    ),
    ray: str | None = typer.Option(
        None, help="Address of the Ray cluster, or local; by default RAY_ADDRESS, else local."
    ),
) -> Answer:
    """Make an index, and add images, or vectors, to it.

    Stopped while it adds, it keeps what it has; `hashlens index add` goes on. In shards, the same
    command goes on.

    Example: hashlens index create shop.idx photos/ --model model/
    """
    if ray is not None and shards is None:
        raise typer.BadParameter("--ray goes with --shards, for example --shards 4")
    if shards is not None:
        if len(sources or []) != 1 or metadata or reading["strict"] or features != "float16":
            raise typer.BadParameter(
                "--shards takes one SOURCE, without --metadata, --strict or --features"
            )
        from hashlens.distributed.encoding import create_sharded
        from hashlens.distributed.snapshots import read_manifest

        with ProgressBar("encoding", None, unit="images") as bar:
            skipped = create_sharded(
                index, model, sources[0], shards=shards, address=ray, progress=bar.reach
            )
        sizes = [shard.images for shard in read_manifest(index).shards]
        result = {"index": str(index), "added": sum(sizes), "shards": sizes}
        text = (
            f"added {sum(sizes)}, skipped {len(skipped)}; {index} has {shards} shards of "
            f"{min(sizes)} to {max(sizes)}"
        )
        return Answer(result, text, skipped)
    from hashlens.index.hash_index import HashIndex
    from hashlens.index.layout import FEATURE_TYPES

    if features not in (*FEATURE_TYPES, "none"):
        raise typer.BadParameter(f"--features: expected float16, float32 or none, got {features!r}")
    images = open_given(sources or [], metadata, metadata_columns, **reading)
    encoder = open_model(model)
    with HashIndex.create(index, encoder, features=features, model=model) as new:
        return _add(new, images, reading["strict"])


@on_index("add")
def add_command(
    index: Path = INDEX,
    sources: list[str] = SOURCES,
    label: str | None = typer.Option(None, help="Label of all these images."),
    metadata: list[str] = METADATA,
    metadata_columns: str | None = METADATA_COLUMNS,
    model: Path | None = INDEX_MODEL,
    reading: dict[str, Any] = READING,
) -> Answer:
    """Add images that are not in the index yet.

    Example: hashlens index add shop.idx new-photos/ --metadata season=spring
    """
    if not sources:
        raise typer.BadParameter("expected at least one image, folder or other source")
    images = open_given(sources, metadata, metadata_columns, **reading)
    if label is not None:
        images = images._replace(labels=[label] * len(images.uris))
    with open_index(index, model, encode=True) as opened:
        return _add(opened, images, reading["strict"])


def _add(index: Index, images: GivenImages, strict: bool) -> Answer:
    from hashlens.index.hash_index import HashIndex

    known, is_new = set(index.uris()), []
    for uri in images.uris:
        is_new.append(uri not in known)
        known.add(uri)
    there = is_new.count(False)
    with ProgressBar("adding", len(is_new) - there) as progress:
        report = index.add(
            compress(chain.from_iterable(images.inputs), is_new),
            list(compress(images.labels, is_new)),
            list(compress(images.metadata, is_new)),
            uris=list(compress(images.uris, is_new)),
            progress=progress,
            strict=strict,
        )
    twice: list[int] = []
    if isinstance(index, HashIndex) and 0 < len(report.ids) < len(index):
        first = int(report.ids[0])
        twice = [group[0] for group in index.copies(first) if group[0] < first]
    if twice:
        note(
            f"note: {len(twice)} of these pictures were in the index already under another name, "
            f"such as {printable(index.get(twice[0]).uri)}; if they moved: hashlens index remove "
            f"{index.path} OLD, and next time hashlens index sync, or relocate"
        )
    result = {"index": str(index.path), "added": len(report.ids), "images": len(index)}
    result |= {"already_there": there, "copies": len(twice)}
    result["passed_over"] = dict(images.passed_over)
    text = f"added {len(report.ids)}, skipped {len(report.skipped)}"
    if there:
        text += f", {there} were there already"
    text += passed_over(images.passed_over)
    return Answer(result, f"{text}; {index.path} holds {len(index)} images", report.skipped)


@on_index("sync")
def sync_command(
    index: Path = INDEX,
    folder: str = typer.Argument(..., help="Folder of images; sub-folders name classes."),
    model: Path | None = INDEX_MODEL,
    exclude: list[str] = EXCLUDE,
    strict: bool = STRICT,
    verify_content: bool = typer.Option(
        False,
        "--verify-content",
        help="Read every file, also those whose size and time say that they are unchanged.",
    ),
) -> Answer:
    """Make the index say what a folder holds, encoding only what is new or changed.

    Images of the index that came from other places stay. Stopped, it goes on where it was.

    Example: hashlens index sync shop.idx photos/
    """
    from hashlens.data.source import ReadOptions
    from hashlens.index.syncing import sync_folder

    options = ReadOptions(tuple(exclude), strict)
    with open_index(index, model, encode=True) as opened, ProgressBar("encoding", None) as bar:
        found, report = sync_folder(
            opened, folder, options, verify_content=verify_content, progress=bar.reach
        )
        images = len(opened)
    for line in found.notes():
        note(f"note: {line}")
    result = {"index": str(index), **report._asdict(), "images": images}
    result["passed_over"] = dict(found.passed_over)
    counts = {**report._asdict(), "skipped": len(report.skipped)}
    told = ", ".join(f"{value} {key}" for key, value in counts.items())
    text = f"{told}{passed_over(found.passed_over)}; {index} holds {images} images"
    return Answer(result, text, report.skipped)


@on_index("reencode")
def reencode_command(
    index: Path = INDEX,
    model: Path = typer.Option(..., help="Folder of the new model, or an exported .onnx file."),
) -> Answer:
    """Give an index the codes of another model; the old index stays next to it, as INDEX.before.

    Labels and metadata stay; images get new ids. Searches go on meanwhile, and a service goes on
    with the new index if it has the new model. Stopped, the same command goes on.

    Example: hashlens index reencode shop.idx --model model-2/
    """
    from hashlens.distributed.snapshots import is_sharded
    from hashlens.workflows.reencode import reencode

    if is_sharded(index):
        raise IndexStoreError(
            f"{index}: an index in shards is made again with `hashlens index create --shards`"
        )
    with ProgressBar("encoding", None) as progress:
        done = reencode(index, open_model(model), model, progress=progress.reach)
    before = None if done.before is None else str(done.before)
    result = {"index": str(done.new), "images": done.images, "before": before}
    text = f"{done.new} holds {done.images} images; the index before is {done.before}"
    if done.before is None:
        text = (
            f"{len(done.skipped)} images cannot be read: {index} stays as it was, and {done.new} "
            f"holds the other {done.images}; remove those images from {index}, and run this again"
        )
    return Answer(result, text, done.skipped, failed=done.before is None)


@on_index("relocate")
def relocate_command(
    index: Path = INDEX,
    old: Path = typer.Argument(..., help="Folder where the files were."),
    new: Path = typer.Argument(..., help="Folder where they are now."),
) -> Answer:
    """Say that a folder's files are in another place now; nothing is encoded again.

    The remembered place of the model changes with them, if it was below the folder too.

    Example: hashlens index relocate shop.idx /mnt/old/photos /mnt/new/photos
    """
    with open_index(index) as opened:
        changed, lost = opened.relocate(old, new)
    result = {"index": str(index), "relocated": changed, "lost": lost}
    ending = f", {lost} of them not there" if lost else ""
    return Answer(result, f"relocated {changed} images{ending}")


@on_index("remove")
def remove_command(
    index: Path = INDEX,
    images: list[str] = typer.Argument(
        ..., metavar="IMAGE", help="Ids, paths and URIs as the index has them, or whole folders."
    ),
) -> Answer:
    """Take images out of the index; the files stay.

    Example: hashlens index remove shop.idx 17 photos/old.jpg photos/2019/
    """
    from hashlens.files import path_uri
    from hashlens.index.syncing import relocated

    with open_index(index) as opened:
        by_uri = {} if all(i.isdecimal() for i in images) else opened.uris()
        ids: set[int] = set()
        for image in images:
            # The empty name is that of all images from memory, so it names none.
            found = image and (by_uri.get(image) or by_uri.get(path_uri(image)))
            folder = Path(os.path.abspath(os.path.expanduser(image)))
            if found:
                ids.update(found)
            elif image.isascii() and image.isdecimal():
                ids.add(int(image))
            elif image and (
                below := [uri for uri in by_uri if uri and relocated(uri, folder, folder)]
            ):
                ids.update(id for uri in below for id in by_uri[uri])
            else:
                raise InvalidInputError(f"{image!r}: not in {index}; nothing was removed")
        opened.remove(sorted(ids))
        left = len(opened)
    result = {"index": str(index), "removed": sorted(ids), "images": left}
    return Answer(result, f"removed {len(ids)}; {index} holds {left} images")


@on_index("update")
def update_command(
    index: Path = INDEX,
    image_id: int = typer.Argument(..., metavar="ID", help="An image of the index."),
    label: str | None = typer.Option(None, help="New label; an empty one takes it away."),
    metadata: list[str] = typer.Option(
        [], "--metadata", help="key=value; keys that are not named stay as they are."
    ),
    image: Path | None = typer.Option(None, help="Picture to take its place."),
    model: Path | None = INDEX_MODEL,
) -> Answer:
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
    return Answer(record._asdict(), f"updated {image_id}: {printable(str(record._asdict()))}")


@on_index("info")
def info_command(index: Path = INDEX) -> Answer:
    """Say what an index holds.

    Example: hashlens index info shop.idx
    """
    with open_index(index, read_only=True) as opened:
        info = asdict(opened.info())
        labels = opened.label_counts()
    lines = [f"{key.replace('_', ' '):<15} {printable(str(value))}" for key, value in info.items()]
    lines.append(f"{'labels':<15} {sum(label is not None for label in labels)}")
    named = {label: count for label, count in labels.items() if label is not None}
    unlabelled = labels.get(None, 0)
    return Answer({**info, "labels": named, "unlabelled": unlabelled}, "\n".join(lines))


@on_index("verify")
def verify_command(index: Path = INDEX) -> Answer:
    """Read every byte against its checksum, and name what is damaged.

    Example: hashlens index verify shop.idx
    """
    with open_index(index, read_only=True) as opened:
        info = opened.info()
        with ProgressBar("reading", 3 * (info.images + info.removed)) as progress:
            damage = opened.verify(progress)
    result = {"index": str(index), "intact": not damage, "damage": damage}
    text = "\n".join(damage) or f"{index}: intact, {info.images} images"
    return Answer(result, text, failed=bool(damage))


@on_index("compact")
def compact_command(index: Path = INDEX) -> Answer:
    """Free the space of removed images; searches go on meanwhile.

    Example: hashlens index compact shop.idx
    """
    with open_index(index) as opened:
        before = opened.info().bytes_on_disk
        dropped = opened.compact()
        after = opened.info().bytes_on_disk
    result = {"index": str(index), "dropped": dropped, "bytes": after, "bytes_before": before}
    text = f"dropped {dropped} rows; {before:,} bytes before, {after:,} now"
    return Answer(result, text)


@on_index("copy")
def copy_command(
    index: Path = INDEX,
    to: Path = typer.Argument(..., metavar="TO", help="New folder for the copy."),
) -> Answer:
    """Copy an index that may be in use: whole, of one commit, and checked; for backups.

    Example: hashlens index copy shop.idx /backup/shop.idx
    """
    with open_index(index, read_only=True) as opened:
        images = opened.copy(to)
    result = {"index": str(index), "to": str(to), "images": images}
    return Answer(result, f"copied {index} with {images} images to {to}")


@on_index("reshard")
def reshard_command(
    old: Path = typer.Argument(..., metavar="OLD", help="An index, in shards or not."),
    new: Path = typer.Argument(..., metavar="NEW", help="Folder to make."),
    shards: int | None = typer.Option(None, min=1, help="Shards; left out, one index is made."),
) -> Answer:
    """Write an index in another number of shards, or as one; nothing is encoded again.

    Images get new ids. Shards of an older form are converted.

    Example: hashlens index reshard shop.idx shop-8.idx --shards 8
    """
    from hashlens.distributed.snapshots import reshard

    with ProgressBar("writing", None, unit="images") as progress:
        images = reshard(old, new, shards, progress=progress)
    result = {"index": str(new), "images": images, "shards": shards}
    return Answer(result, f"{new} holds {images} images in {shards or 'no'} shards")


@on_index("duplicates")
def duplicates_command(
    index: Path = INDEX,
    radius: int = typer.Option(2, min=0, help="Bits in which codes may differ; 0: equal codes."),
    out: Path | None = typer.Option(None, help="Folder for a page with the pictures."),
    sheet: Path | None = typer.Option(None, help="Write a sheet of the groups, as PNG or JPEG."),
) -> Answer:
    """Find exact copies, by content, and pictures that look alike.

    Of images whose codes are near, the pictures are compared: other sizes, qualities and small
    crops of a picture are found. The first of each group is the largest file.

    Example: hashlens index duplicates shop.idx --out twins/
    """
    from hashlens.workflows.duplicates import find_duplicates, group_sheet, write_duplicates

    make_folder(out)
    with (
        open_index(index, read_only=True) as opened,
        ProgressBar("pairs found", None) as pairs,
        ProgressBar("pictures compared", None) as pictures,
    ):
        found = find_duplicates(opened, radius, progress=pairs, compared=pictures)
    groups = found.copies + found.near
    if sheet is not None:
        if not groups:
            raise IndexStoreError(f"{sheet}: no duplicates to draw; try a larger --radius")
        save_picture(group_sheet(groups), sheet)
    if found.unread:
        basis = "near ones are by codes alone" if found.by_codes else "they are left out"
        note(f"note: {found.unread} pictures could not be read and compared: {basis}")
    named = [{"ids": [r.id for r in g], "uris": [r.uri for r in g]} for g in found.near]
    same = [[record.id for record in group] for group in found.copies]
    result = {"radius": radius, "pairs": found.pairs, "copies": same, "groups": named}
    result |= {"extra": found.extra, "unread": found.unread}
    # Names below the folder that holds all of them, which is told once.
    paths = [r.uri for group in groups for r in group]
    base = os.path.dirname(os.path.commonprefix(paths))  # noqa: RUF071
    lines = [f"in {printable(base)}:"] if base else []
    for what, shown in (("copies", found.copies), ("near", found.near)):
        for group in shown:
            names = (f"{r.id}:{printable(r.uri.removeprefix(base).lstrip('/'))}" for r in group)
            lines.append(f"{what}  " + "  ".join(names))
    lines.append(
        f"groups of exact copies: {len(found.copies)}; of pictures that look alike: "
        f"{len(found.near)}; images that could go: {found.extra}"
    )
    if out is not None:
        lines.append(f"page: {write_duplicates(found, out)}")
    return Answer(result, "\n".join(lines))


@on_index("export")
def export_command(
    index: Path = INDEX,
    out: Path = typer.Argument(..., help="File or folder to write; must not exist."),
    format: str = typer.Option(
        "faiss",
        help="faiss: IndexBinaryFlat; parquet: one table; numpy: a folder of arrays; pgvector: SQL "
        "for psql; milvus and elasticsearch: JSON for a bulk insert; lancedb: Parquet for "
        "create_table; sqlite-vec: an SQLite file.",
    ),
) -> Answer:
    """Write the index as a file that other libraries read.

    Example: hashlens index export shop.idx shop.faiss --format faiss
    """
    from hashlens.index.exporting import FORMATS

    if format not in FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(FORMATS)}, got {format!r}")
    with open_index(index, read_only=True) as opened:
        notes = opened.export(out, format)
        images = len(opened)
    for line in notes:
        note(f"note: {line}")
    result = {"index": str(index), "out": str(out), "format": format, "images": images}
    result["notes"] = notes
    return Answer(result, f"wrote {images} images to {out}")
