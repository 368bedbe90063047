"""Opening what commands work on: an index with its model, images, conditions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer

from hashlens.cli.options import note
from hashlens.errors import IndexStoreError, ModelError, SourceError, system_reason
from hashlens.files import compared

if TYPE_CHECKING:
    from hashlens.index.protocol import Index
    from hashlens.models.encoder import Encoder


# The sign may stand between spaces, as many before it as after it.
_CONDITION = re.compile(
    r"(?P<key>.+?)(?P<gap> *)(?P<sign>>=|<=|=|>|<)(?P=gap)(?P<value>.*)", re.DOTALL
)
_MOST_READ, _READ_AT_ONCE = 10_000, 200  # images whose metadata are searched for a key


def open_index(
    path: Path,
    model: Path | None = None,
    *,
    encode: bool = False,
    read_only: bool = False,
    require_all: bool = True,
) -> Index:
    """Open an index, in shards or not; with ``encode``, also the model given or remembered.

    Unless ``require_all``, searches do without shards that cannot be read.
    """
    from hashlens.distributed.snapshots import is_sharded
    from hashlens.index.hash_index import HashIndex

    encoder = load_encoder(path, model) if encode else None
    if not is_sharded(path):
        return HashIndex.open(path, encoder, read_only=read_only)
    from hashlens.distributed.sharded import ShardedIndex

    return ShardedIndex.open(path, encoder, read_only=read_only, require_all=require_all)


def remembered_model(path: Path) -> str | None:
    """Where the index at ``path`` says its model is, if it does."""
    with open_index(path, read_only=True) as index:
        return index.model


def load_encoder(path: Path, model: Path | None) -> Encoder:
    """The encoder of the model given, else of the one that the index at ``path`` remembers."""
    remembered = remembered_model(path)
    chosen = model or (Path(remembered) if remembered else None)
    if chosen is None:
        raise IndexStoreError(f"{path}: the index does not know its model; give it with --model")
    if model is None:
        from hashlens.models.description import require_own_place

        require_own_place(chosen, path)
    if not chosen.exists() and model is None:
        raise IndexStoreError(
            f"{path}: its model was at {chosen}, but is gone; say where with --model"
        )
    return open_model(chosen)


def open_model(model: Path) -> Encoder:
    """The encoder of a model's folder or file; says what runs it where that was chosen."""
    from hashlens.models.encoder import Encoder

    encoder = Encoder.load(model)
    if encoder.runtime == "onnx" and model.is_dir():
        note("encoding with ONNX Runtime; HASHLENS_RUNTIME=torch takes PyTorch")
    return encoder


class GivenImages(NamedTuple):
    """Images, or vectors, to add.

    URIs, and for each a label or None, and metadata; files passed over, by suffix; and what the
    encoder takes, in the same order, in parts.
    """

    uris: list[str]
    labels: list[str | None]
    metadata: list[dict[str, Any]]
    passed_over: Counter[str]
    inputs: list[Iterable[Any]]


def open_given(
    sources: Sequence[str], metadata: Sequence[str], columns: str | None, **options: Any
) -> GivenImages:
    """Image files, folders and other sources as one list; options as for ``open_source``.

    Of a table's other columns, ``columns`` become metadata, by default all; then ``--metadata``.
    """
    from hashlens.data.folders import is_image_file
    from hashlens.data.lists import LIST_SUFFIXES
    from hashlens.data.opening import open_source
    from hashlens.files import path_uri

    found = GivenImages([], [], [], Counter(), [])
    wanted = [name.strip() for name in (columns or "").split(",") if name.strip()]
    for spec in sources:
        if Path(spec).is_file() and is_image_file(Path(spec)):
            found.uris.append(path_uri(spec))
            found.labels.append(None)
            found.metadata.append({})
            found.inputs.append(found.uris[-1:])
            continue
        kinds = (".parquet", ".npy", ".tar", *LIST_SUFFIXES)
        if Path(spec).is_file() and not spec.lower().endswith(kinds):
            raise SourceError(
                f"{spec}: not an image by its name or content; expected one such as x.jpg or x.png "
                "(convert other kinds first), a folder, a .parquet, .csv, .npy or .tar file"
            )
        source = open_source(spec, **options)
        for line in source.notes:
            note(f"note: {line}")
        found.passed_over.update(source.passed_over)
        found.uris.extend(source.uris)
        found.labels.extend(source.label_name(i) for i in range(len(source)))
        rows = [source.metadata(i) for i in range(len(source))]
        if columns is not None:
            known = {name for row in rows for name in row}
            if unknown := sorted(set(wanted) - known):
                raise SourceError(
                    f"{spec}: expected a column {unknown[0]}, got {', '.join(sorted(known))}; "
                    "name others with --metadata-columns"
                )
            rows = [{name: row[name] for name in wanted if name in row} for row in rows]
        found.metadata.extend(rows)
        found.inputs.append(source.inputs)
    return _with_metadata(found, metadata)


def make_folder(out: Path | None) -> None:
    """Make the folder of ``--out``, before the work whose results go there."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = system_reason(error)
        raise SourceError(f"{out}: {reason}; expected a folder that can be made") from error


def passed_over(counts: Mapping[str, int]) -> str:
    """The end of a summary: how many files were no images, by suffix."""
    from hashlens.data.folders import count_words

    return f", passed over {sum(counts.values())} ({count_words(counts)})" if counts else ""


def _with_metadata(images: GivenImages, given: Sequence[str]) -> GivenImages:
    """Images with the metadata of ``--metadata``: key=value for all, or files joined by name."""
    from hashlens.data.lists import LIST_SUFFIXES, match_images, read_list
    from hashlens.data.source import plain_cells

    files = [text for text in given if text.lower().endswith(LIST_SUFFIXES) and "=" not in text]
    shared = parse_metadata([text for text in given if text not in files])
    metadata, labels = [own | shared for own in images.metadata], list(images.labels)
    for file in files:
        read = read_list(Path(file).expanduser())
        rows, unknown = match_images(read, images.uris)
        named = 0
        for i, row in enumerate(rows.tolist()):
            if row >= 0:
                named += 1
                metadata[i] |= plain_cells(read.columns, row)
                if read.labels is not None and read.labels[row] is not None and labels[i] is None:
                    labels[i] = str(read.labels[row])
        note(
            f"note: {file}: found {named} of {len(rows)} images, {unknown} of its "
            f"{len(read.names)} rows name no image here, or several"
        )
    return images._replace(metadata=metadata, labels=labels)


def parse_metadata(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` as metadata: numbers, true, false and null as such, all else as text."""
    metadata = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"expected key=value, got {text!r}")
        metadata[key] = _scalar(value)
    return metadata


def parse_where(given: Sequence[str]) -> dict[str, Any]:
    """Conditions such as ``label=cat`` or ``price<20``; one key given twice means either value."""
    where: dict[str, Any] = {}
    for text in given:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise typer.BadParameter(f"--where: expected key=value or key<value, got {text!r}")
        key, sign, value = match["key"], match["sign"], match["value"]
        if isinstance(where.get(key, [] if sign == "=" else {}), list) != (sign == "="):
            raise typer.BadParameter(f"--where: {key!r} cannot be both equal and compared")
        scalar = _scalar(value)
        if sign == "=":
            alternatives = [value] if scalar is None or scalar == value else [value, scalar]
            if key == "label":  # labels are words, also those that look like numbers
                alternatives = [value]
            where.setdefault(key, []).extend(alternatives)
        else:
            where.setdefault(key, {})[sign] = value if scalar is None else scalar
    return where


def unknown_words(index: Index, where: Mapping[str, Any]) -> list[str]:
    """What conditions ask for that no image of the index has, with what is like it."""
    import difflib

    told = []
    if isinstance(asked := where.get("label"), list):
        labels = {label for label in index.label_counts() if label is not None}
        by_folded = {label.casefold(): label for label in labels}
        for word in sorted({*map(compared, asked)} - {*map(compared, labels)}):
            near = difflib.get_close_matches(word.casefold(), by_folded, 3, 0.5)
            like = ", ".join(by_folded[each] for each in near)
            told.append(
                f"no image has the label {word!r}" + (f"; like it are {like}" if like else "")
            )
    keys = {key for key in where if key != "label"}
    if keys:
        ids = index.ids()[:_MOST_READ]
        known: dict[str, Any] = {}
        for start in range(0, len(ids), _READ_AT_ONCE):  # most keys are in the first records
            for record in index.records(ids[start : start + _READ_AT_ONCE]):
                known.update(record.metadata)
            if keys <= known.keys():
                break
        for key in sorted(keys & known.keys()):
            asked, held = where[key], known[key]
            limits = asked.values() if isinstance(asked, dict) else [""]
            if isinstance(held, str) and not any(isinstance(limit, str) for limit in limits):
                told.append(f"metadata {key!r} holds words, such as {held!r}: no number fits")
        for key in sorted(keys - known.keys()):
            like = ", ".join(list(known)[:10])
            told.append(
                f"none of the first {len(ids):,} images has metadata {key!r}"
                + (f"; they have {like}" if like else "")
            )
    return told


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str | list | dict) else value


RADIUS = typer.Option(
    None,
    metavar="BITS",
    help="All modes but es: only images whose code differs in at most so many bits; a number, or "
    "proposed for the one that hashlens inspect stored with the model.",
)


def parse_radius(text: str | None) -> int | Literal["proposed"] | None:
    """What was written after ``--radius``; usage that is wrong ends the command."""
    if text is None:
        return None
    if text == "proposed":
        return "proposed"
    if not (text.isascii() and text.isdecimal()):
        raise typer.BadParameter(
            f"--radius: expected a number of bits from 0, or proposed, got {text!r}"
        )
    return int(text)


def stored_radius(encoder: Encoder, model: str | Path | None) -> int:
    """The radius that is stored with a model."""
    if encoder.radius is None:
        again = ", and export it again" if str(model).endswith(".onnx") else ""
        raise ModelError(
            f"{model}: no radius is stored with this model; run `hashlens inspect MODEL` "
            f"with its folder{again}, or give --radius a number"
        )
    note(f"radius: {encoder.radius} bits, as stored with the model")
    return encoder.radius
