"""``hashlens search``: images of an index that are most like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from hashlens.cli.opening import (
    RADIUS,
    open_index,
    parse_radius,
    parse_where,
    stored_radius,
    unknown_words,
)
from hashlens.cli.options import INDEX, INDEX_MODEL, JSON, note
from hashlens.errors import ImageError, SourceError
from hashlens.report.progress import working

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder
    from hashlens.types import Hit


def search_command(
    index: Path = INDEX,
    images: list[str] = typer.Argument(
        None, metavar="IMAGE", help="Image files, folders of them, or ids of images in the index."
    ),
    vector: Path | None = typer.Option(
        None, help="A .npy file: a vector, or an array with one in each row, to search by."
    ),
    text: list[str] = typer.Option(
        [],
        help="Words to search by, where the model's backbone is open_clip:NAME; may be repeated.",
    ),
    k: int = typer.Option(10, "-k", min=1, help="Results for each image."),
    mode: str | None = typer.Option(
        None,
        help="hds: codes, then features; acs: codes, then how sure the query is of each bit; "
        "bcs: codes alone; es: features of all images. By default the one that was best on the "
        "model's validation images, else hds, or acs if the index has no features.",
    ),
    radius: str | None = RADIUS,
    where: list[str] = typer.Option(
        [], "--where", help="Condition on label or metadata: key=value, key<value, key>=value, ..."
    ),
    model: Path | None = INDEX_MODEL,
    require_all: bool = typer.Option(
        False,
        "--require-all",
        help="Fail if a shard cannot be read; else the others answer, and it is named.",
    ),
    as_json: bool = JSON,
    sheet: Path | None = typer.Option(None, help="Write a sheet of the pictures, as PNG or JPEG."),
) -> None:
    """Find the images most like others.

    An image of the index, named by its id, comes first itself.

    Example: hashlens search shop.idx a.jpg b.jpg -k 5 --where brand=acme --sheet found.png
    """
    from hashlens.types import MODES, Hit, SearchTrace, Text

    if mode is not None and mode not in MODES:
        raise typer.BadParameter(f"--mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "es" and radius is not None:
        raise typer.BadParameter("--radius goes with --mode hds, acs or bcs")
    limit = parse_radius(radius)
    conditions = parse_where(where)
    if not images and vector is None and not text:
        raise typer.BadParameter("expected an IMAGE, an id, --text WORDS, or --vector FILE.npy")
    names: list[Any] = [
        int(i) if i.isascii() and i.isdecimal() and not Path(i).exists() else i
        for i in (_with_folders(images) if images else [])
    ]
    queries: list[Any] = [*names, *map(Text, text)]
    names += text
    if vector is not None:
        import numpy as np

        from hashlens.data.vectors import as_matrix, load_npy

        rows = as_matrix(np.atleast_2d(load_npy(vector)), str(vector))
        queries += list(rows)
        names += [f"{vector}#{row}" for row in range(len(rows))]
    encode = limit == "proposed" or not all(isinstance(query, int) for query in queries)
    trace = SearchTrace()
    with (
        working("searching" if not encode else "loading the model and searching"),
        open_index(index, model, encode=encode, read_only=True, require_all=require_all) as opened,
    ):
        if limit == "proposed":
            limit = stored_radius(cast("Encoder", opened.encoder), model or opened.model)
        found = opened.search(queries, k, mode=mode, radius=limit, where=conditions, trace=trace)
        for line in [] if trace.missing else unknown_words(opened, conditions):
            note(f"note: {line}")
        if sheet is not None:
            uris = [opened.get(name).uri if isinstance(name, int) else name for name in names]
            write_sheet(sheet, list(zip(map(str, names), uris, found, strict=True)))
    if as_json:
        told = [name for name in Hit._fields if name != "code"]  # bytes, which JSON has not
        answers = [
            {"query": name, "hits": [{each: getattr(hit, each) for each in told} for hit in hits]}
            for name, hits in zip(names, found, strict=True)
        ]
        settings = {"mode": trace.mode, "k": k, "radius": limit, "missing": trace.missing}
        typer.echo(json.dumps({**settings, "results": answers}))
        return
    if trace.missing:
        note(
            f"note: without the images of {', '.join(trace.missing)}, which cannot be read; "
            f"`hashlens index verify {index}` says why"
        )
    if mode is None:
        note(f"mode {trace.mode}; choose another with --mode")
    for name, hits in zip(names, found, strict=True):
        _print(name, hits)
    from hashlens.index.syncing import lost_files

    if lost := lost_files(hit.uri for hits in found for hit in hits):
        note(
            f"note: {len(lost)} of these files are gone, such as {printable(lost[0])}; if they "
            f"moved: hashlens index relocate {index} OLD NEW, or hashlens index sync {index} FOLDER"
        )


def _with_folders(images: list[str]) -> list[str]:
    """What was given, with the images of a folder in its place; unreadable ones are named."""
    given = []
    for image in images:
        if not Path(image).is_dir():
            given.append(image)
            continue
        from hashlens.data.folders import list_folder
        from hashlens.data.opening import load_image

        found = list_folder(image)
        for line in found.notes():
            note(f"note: {line}")
        for path in found.paths:
            try:
                load_image(path, size_hint=1)
                given.append(str(path))
            except ImageError as error:
                note(f"skipped {error}")
    if not given:
        raise SourceError(f"{', '.join(images)}: no images found there to search by")
    return given


def _print(name: str | int, hits: list[Hit]) -> None:
    typer.echo(f"{name}: {len(hits)} found")
    if hits:
        typer.echo(f"{'rank':>6} {'id':>9} {'bits':>5} {'distance':>9}  {'label':<20} image")
    for rank, hit in enumerate(hits, 1):
        fine = hit.euclidean if hit.asymmetric is None else hit.asymmetric
        distance = "" if fine is None else f"{fine:.4g}"
        label = printable(hit.label or "")
        typer.echo(
            f"{rank:>6} {hit.id:>9} {hit.hamming:>5} {distance:>9}  {label:<20} "
            f"{printable(hit.uri)}"
        )


def printable(text: str) -> str:
    """Text without control characters and lone surrogates, which would garble a terminal."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return plain.encode("utf-8", "backslashreplace").decode()


def write_sheet(path: Path, answers: list[tuple[str, str, list[Hit]]]) -> None:
    """Queries and their nearest pictures as one picture."""
    from hashlens.data.opening import load_image
    from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet

    queries = []
    for name, uri, hits in answers:
        tiles = [
            Neighbour(hit.uri, printable(hit.label or ""), f"{hit.hamming} bits") for hit in hits
        ]
        queries.append(SheetQuery(uri, printable(Path(name).name), {"": tiles}))
    save_picture(picture_sheet(queries, load_image), path)


def save_picture(picture: Any, path: Path) -> None:
    """Save a picture in the format that its name says."""
    from hashlens.files import replace_file
    from hashlens.index.store import file_errors

    try:
        with file_errors(path):
            replace_file(path, picture.save)
    except ValueError as error:
        raise typer.BadParameter(f"--sheet: {path}: expected a name such as x.png") from error
