"""From what a user writes (a folder, a file, a name) to a source."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hashlens.data.folders import list_images, open_folder
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.files import path_uri

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHAPES = (
    "expected a folder with one sub-folder a class, a .parquet file, FOLDER#train, digits, "
    "or a data set's hub name as hub:NAME"
)


def open_source(spec: str | Path) -> Source:
    """Open images and labels.

    Parameters
    ----------
    spec : str or Path
        A folder (one sub-folder a class, or images alone), a ``.parquet`` file, ``FOLDER#PART``
        for ``PART.parquet`` or the sub-folder PART, ``digits``, ``digits#train``,
        ``digits#test``, or ``hub:NAME[#SPLIT]``; ``OWNER/NAME`` that is no path is a hub name.

    Returns
    -------
    Source
        Nothing is decoded yet.

    Raises
    ------
    SourceError
        If it is not there, may not be read, is empty, or could mean several things.
    """
    text = os.fspath(spec)
    if not text.strip():
        raise SourceError(f"empty source: {_SHAPES}")
    if text == "digits" or text.startswith("digits#"):
        from hashlens.data.digits import open_digits

        return open_digits(text)
    if text.startswith("hub:"):
        return _open_hub(text, text.removeprefix("hub:"))
    path = Path(os.path.expanduser(text))
    if _exists(path):
        return _open_path(text, path)
    base, mark, part = os.path.expanduser(text).rpartition("#")
    if mark and base and _exists(Path(base)):
        return _open_part(text, Path(base), part)
    name = base if mark else text
    if _HUB_NAME.fullmatch(name) and not _looks_local(name):
        try:
            return _open_hub(text, text)
        except SourceError as error:
            raise SourceError(f"{text}: no such file or folder; {error}") from error
    raise SourceError(f"{_shown(text)}: no such file or folder; {_SHAPES}")


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except PermissionError as error:
        raise SourceError(f"{_shown(str(path))}: no permission to look into its folder") from error
    except (OSError, ValueError):
        return False
    return True


def _looks_local(name: str) -> bool:
    return os.path.exists(name.split("/")[0]) or name.lower().endswith(".parquet")


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _open_hub(spec: str, name: str) -> Source:
    from hashlens.data.hub import open_hub

    name, mark, split = name.partition("#")
    if not name or (mark and not split):
        raise SourceError(f"{spec}: expected hub:NAME or hub:NAME#SPLIT")
    return open_hub(spec, name, split or None)


def _open_path(spec: str, path: Path) -> Source:
    if path.is_dir():
        return _open_directory(spec, path)
    if path.suffix.lower() == ".parquet":
        from hashlens.data.tables import open_parquet_source

        return open_parquet_source(spec, path)
    raise SourceError(f"{_shown(spec)}: one file, but no source of many images; {_SHAPES}")


def _open_directory(spec: str, folder: Path) -> Source:
    tables = _tables(folder)
    if not tables:
        return open_folder(spec, folder)
    if list_images(folder):
        raise SourceError(
            f"{spec}: holds both images and {tables[0].name}; name the file, or take it out"
        )
    if len(tables) == 1:
        return _open_path(spec, tables[0])
    base = spec.rstrip("/")
    choices = " or ".join(f"{base}#{table.stem}" for table in tables)
    raise SourceError(f"{spec}: holds {len(tables)} parquet files; name one: {choices}")


def _tables(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".parquet")
    except PermissionError as error:
        raise SourceError(
            f"{path_uri(str(folder))}: no permission to list this folder; allow reading it"
        ) from error


def _open_part(spec: str, base: Path, part: str) -> Source:
    if not base.is_dir():
        raise SourceError(
            f"{_shown(spec)}: one row of a file names an image, not a source; use {base} itself"
        )
    tables = _tables(base)
    for table in tables:
        if table.stem == part:
            return _open_path(spec, table)
    if part and (base / part).is_dir():
        return open_folder(spec, base / part)
    names = [table.stem for table in tables]
    names += sorted(entry.name for entry in base.iterdir() if entry.is_dir())
    choices = ", ".join(f"#{name}" for name in names[:10]) or "nothing to choose"
    raise SourceError(f"{_shown(spec)}: no part '{part}' in {base}; there is {choices}")
