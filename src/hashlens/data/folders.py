"""Folders of image files: one sub-folder per class, or no classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hashlens.data.source import FileImages, Source
from hashlens.errors import SourceError, system_reason
from hashlens.files import path_uri

_SPLIT_NAMES = frozenset({"train", "training", "test", "val", "valid", "validation", "dev"})

SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
        ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""File names that are taken for images when a folder is listed; case does not matter."""


def open_folder(spec: str, folder: Path) -> Source:
    """A folder of images as a source.

    Each sub-folder is a class, with all images below it at any depth. Files in the folder itself
    are unlabelled.
    """
    paths = list_images(folder)
    if not paths:
        raise SourceError(
            f"{path_uri(str(folder))}: no images found; expected files such as .jpg or "
            ".png, best in one sub-folder per class"
        )
    root = Path(os.path.abspath(folder))
    parts = [path.relative_to(root).parts for path in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    _refuse_splits(spec, names, {part[0] for part in parts if len(part) > 2})
    position = {name: i for i, name in enumerate(names)}
    labels = np.array([position[p[0]] if len(p) > 1 else -1 for p in parts], np.int64)
    store = FileImages(tuple(path_uri(path) for path in paths))
    classes = tuple(_readable(name) for name in names)
    notes = _notes(root, names, int((labels < 0).sum()))
    return Source(spec, classes, labels, store, np.arange(len(paths)), None, notes)


def _refuse_splits(spec: str, names: list[str], nested: set[str]) -> None:
    if names and set(names) <= nested and {name.lower() for name in names} <= _SPLIT_NAMES:
        choices = " or ".join(f"{spec.rstrip('/')}#{name}" for name in names)
        raise SourceError(f"{spec}: split into parts, not classes; name one: {choices}")


def _readable(name: str) -> str:
    """A class name that can be stored and printed, also where the folder's name is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _notes(root: Path, names: list[str], unlabelled: int) -> tuple[str, ...]:
    if not names:
        return (f"{path_uri(str(root))} has no sub-folders with images, so no classes",)
    notes = []
    empty = sorted(
        entry.name
        for entry in os.scandir(root)
        if not entry.name.startswith(".") and entry.name not in names and entry.is_dir()
    )
    if empty:
        notes.append(f"{len(empty)} sub-folders have no images: {', '.join(empty[:5])}")
    if unlabelled:
        notes.append(f"{unlabelled} images are outside the sub-folders and are unlabelled")
    return tuple(notes)


def list_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, by their suffix, sorted by path.

    Links are followed, loops of links are not; names that start with a dot are left out.
    """
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    return sorted(_walk(root, frozenset()))


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    name = path_uri(os.fspath(folder))
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link back to a folder above
            return
        entries = list(os.scandir(folder))
    except FileNotFoundError as error:
        raise SourceError(f"{name}: no such folder; check the path") from error
    except NotADirectoryError as error:
        raise SourceError(f"{name}: expected a folder, got a file") from error
    except PermissionError as error:
        raise SourceError(
            f"{name}: no permission to list this folder; allow reading it or move it away"
        ) from error
    except OSError as error:
        raise SourceError(f"{name}: cannot list this folder ({system_reason(error)})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(folder / entry.name, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False
