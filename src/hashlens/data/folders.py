"""Folders of image files: what they hold, and which of their sub-folders are classes."""

from __future__ import annotations

import mimetypes
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hashlens.data.image import looks_like_image, plugin_suffixes
from hashlens.data.labels import labels_from_values
from hashlens.data.source import FileImages, ReadOptions, Source, packed
from hashlens.data.tables import labelled_source
from hashlens.errors import SourceError, few_of, system_reason
from hashlens.files import Uri, compared, path_uri, uri_path

SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
        ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""File names that are taken for images when a folder is listed; case does not matter."""

_HEIC = frozenset({".heic", ".heif", ".hif"})
_RAW = frozenset(
    {
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef",
        ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
        ".srf", ".srw", ".x3f",
    }
)  # fmt: skip
_COPIES = (".bak", ".orig", ".old", ".tmp", ".temp", ".part", ".crdownload", "_original", "~")
# What operating systems, network disks and photo programs put between pictures.
_SYSTEM = frozenset(
    {
        "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "~snapshot",
        "$recycle.bin", "recycler", "system volume information", "found.000", "lost+found",
        "__macosx", "thumbnails", "thumbs", "_thumbs",
    }
)  # fmt: skip
_SHOWN = 10


@dataclass
class Listing:
    """What was found below a folder.

    ``passed_over`` counts files that are no images here, by suffix; ``unread`` are folders that
    may not be listed, and pictures of a kind that cannot be read here.
    """

    uris: NDArray[Any] = field(default_factory=packed)
    passed_over: Counter[str] = field(default_factory=Counter)
    system: list[str] = field(default_factory=list)
    excluded: int = 0
    unread: list[Path] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The images."""
        return [uri_path(uri) for uri in self.uris]

    def takes(self, parts: Sequence[str], options: ReadOptions) -> bool:
        """Whether a file elsewhere, by its path, is named like an image; else count it."""
        name = parts[-1]
        folders = [("/".join(parts[: i + 1]), part) for i, part in enumerate(parts)]
        if any(options.excludes(part, path) for path, part in folders):
            self.excluded += 1
        elif any(map(_is_system, parts)):
            self.system += [p for p, part in folders if _is_system(part) and p not in self.system]
        elif is_image_name(name):
            return True
        else:
            self.count(name)
        return False

    def count(self, name: str) -> None:
        """Count a file that is no image."""
        suffix = os.path.splitext(name)[1].lower()
        self.passed_over[suffix if 1 < len(suffix) < 12 else "no suffix"] += 1

    def notes(self) -> list[str]:
        """What was left out, in words."""
        notes = []
        if self.passed_over:
            total = sum(self.passed_over.values())
            hint = ""
            if set(self.passed_over) & _HEIC:
                hint += "; HEIC is read with pip install 'hashlens[heic]'"
            if set(self.passed_over) & _RAW:
                hint += "; camera RAW is not read, export it as JPEG"
            notes.append(
                f"passed over {total} files that are no images here: "
                f"{count_words(self.passed_over)}{hint}"
            )
        if self.system:
            notes.append(f"left out {len(self.system)} system folders: {few_of(self.system)}")
        if self.excluded:
            notes.append(f"left out {self.excluded} files and folders by --exclude")
        if self.denied:
            notes.append(
                f"left out {len(self.denied)} folders that may not be listed: {few_of(self.denied)}"
            )
        return notes


def count_words(counts: Mapping[str, int]) -> str:
    """Counts by kind, the largest first: ``.heic 40, .cr2 3, no suffix 2``."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_SHOWN:])
    words = [f"{kind} {count}" for kind, count in ordered[:_SHOWN]]
    return ", ".join(words + ([f"others {rest}"] if rest else []))


def open_folder(spec: str, folder: Path, listing: Listing, *, all_classes: bool) -> Source:
    """A folder of images, which were listed, as a source.

    With ``all_classes`` every sub-folder is a class, whatever its name and what is in it.
    """
    root = Path(os.path.abspath(folder))
    folders = (uri_path(uri).parent.relative_to(root).parts for uri in listing.uris)
    same: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for all images of a folder
    parts = [same.setdefault(folder, (*folder, "")) for folder in folders]
    return open_listed(spec, listing, parts, root, all_classes=all_classes)


def open_listed(
    spec: str,
    listing: Listing,
    parts: Sequence[tuple[str, ...]],
    root: Path | None = None,
    *,
    all_classes: bool = False,
) -> Source:
    """Images that were listed as a source; ``parts`` are their paths below a folder."""
    where = spec if root is None else path_uri(root)
    if not len(listing.uris):
        left_out = "".join(f"; {note}" for note in listing.notes())
        raise SourceError(
            f"{where}: no images found; expected files such as .jpg or .png, best in one "
            f"sub-folder per class{left_out}"
        )
    found = folder_classes(spec, parts, all_classes=all_classes)
    labels = labels_from_values(found.names, spec)
    source = labelled_source(spec, FileImages(listing.uris), labels)
    notes = (*_notes(where, root, found, labels.classes), *listing.notes())
    return replace(source, notes=notes, passed_over=dict(listing.passed_over))


class FolderClasses(NamedTuple):
    """The class of each file, and the folder, below the root, whose sub-folders are the classes."""

    names: list[str | None]
    base: tuple[str, ...] = ()
    is_dated: bool = False


def folder_classes(
    spec: str, parts: Sequence[tuple[str, ...]], *, all_classes: bool = False
) -> FolderClasses:
    """Read classes off paths below a folder, given in parts.

    A folder that only wraps others is gone through; folders named by dates or cameras are no
    classes; a folder that is split into parts, or could be, is refused.
    """
    depth = 0
    if not all_classes:
        depth = _wrapped(parts)
        tops = Counter(part[depth] for part in parts if len(part) > depth + 1)
        dated = sum(_DATE.fullmatch(name) is not None for name in tops)
        if 2 * dated > len(tops):
            return FolderClasses([None] * len(parts), is_dated=True)
        inside = [part[depth:] for part in parts if len(part) > depth + 1]
        base = "/".join([spec.rstrip("/"), *(parts[0][:depth] if depth else ())])
        _refuse_splits(base, tops, inside)
    length = depth + 1
    base_parts = next((part[:depth] for part in parts if len(part) > length), ())
    names = [
        _readable(part[depth]) if len(part) > length and part[:depth] == base_parts else None
        for part in parts
    ]
    return FolderClasses(names, base_parts)


# A year, with or without month and day, also before words: 2023, 2023-05, 20230514 Rome; the day
# or the month first, 14.05.2023; a month in words; what cameras and albums make, such as 100APPLE.
_YEAR, _DAY = r"(19|20)\d\d", r"(0?[1-9]|[12]\d|3[01])"
_MONTH_NAME = (
    "jan(uary?)?|feb(ruary?)?|mar(ch)?|märz|apr(il)?|may|mai|jun[ei]?|jul[yi]?|aug(ust)?|"
    "sept?(ember)?|o[ck]t(ober)?|nov(ember)?|de[cz](ember)?"
)
_DATE = re.compile(
    rf"{_YEAR}(([-_. ]?(0[1-9]|1[0-2])|[-_. 年]1?\d(?!\d))([-_. 月]?{_DAY})?(\D.*)?)?"
    rf"|({_DAY}[-_. ])?(0?[1-9]|1[0-2])[-_. ]{_YEAR}(\D.*)?"
    rf"|({_DAY}[-_. ]+)?(?i:{_MONTH_NAME})[-_. ,]+{_YEAR}(\D.*)?"
    rf"|[1-9]\d\d(?=\d*[A-Z_])[A-Z\d_]{{5}}|Photos from {_YEAR}",
    re.DOTALL,
)


def _wrapped(parts: Sequence[tuple[str, ...]]) -> int:
    """How many folders lie around those that may be classes: 1 for ``dataset/cat/1.jpg``."""
    depth, left = 0, list(parts)
    while True:
        deeper = [part for part in left if len(part) > depth + 1]
        tops = {part[depth] for part in deeper}
        if len(tops) > 1 or any(_DATE.fullmatch(name) for name in tops):
            return depth
        # A picture or two next to the folder, such as a cover, does not make it a class.
        inner = [part for part in deeper if len(part) > depth + 2]
        if 10 * (len(left) - len(inner)) > len(left) or not inner:
            return 0
        depth, left = depth + 1, inner


_SPLIT_WORD = re.compile(
    r"train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?|pred(iction)?|holdout|unlabell?ed"
)
_NUMBERED_WORD = re.compile(r"fold|part|split|set|cv|batch|shard")


def _without_split_word(name: str) -> str | None:
    """What a name of a part says next to that, such as ``seg`` of ``seg_train``; None: no part."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    words = [word.removesuffix("set") or word for word in words]
    rest = [word for word in words if not _SPLIT_WORD.fullmatch(word)]
    if len(rest) == len(words) and name[-1:].isdigit():
        rest = [word for word in words if not _NUMBERED_WORD.fullmatch(word)]
    return None if len(rest) == len(words) else " ".join(w for w in rest if w != "set")


def _refuse_splits(spec: str, tops: Collection[str], parts: Iterable[tuple[str, ...]]) -> None:
    """Refuse folders that are parts of a data set, by what they hold and by their names."""
    names = sorted(tops)
    nested: dict[str, Counter[str]] = {name: Counter() for name in names}
    for part in parts:
        nested[part[0]][compared(part[1]) if len(part) > 2 else ""] += 1
    held = {name: set(inside) - {""} for name, inside in nested.items()}
    having = [name for name in names if held[name]]
    known = [name for name in names if _without_split_word(name) is not None]
    if len(names) > 1 and known == names and len({*map(_without_split_word, names)}) == 1:
        raise _is_split(spec, names)
    spread = Counter(inside for name in having for inside in held[name])
    shared = {inside for inside, times in spread.items() if times > 1}
    shared = {inside for inside in shared if _without_split_word(inside) is None}
    repeats = len(having) > 1 and all(
        2 * len(held[name] & shared) >= len(held[name])
        and 10 * nested[name][""] < nested[name].total()
        for name in having
    )
    if not repeats:
        return
    if len([name for name in having if name in known]) > 1:
        raise _is_split(spec, names)
    if len(having) <= len(shared) and len(having) == len(names):
        raise SourceError(
            f"{spec}: the sub-folders {few_of(sorted(shared))} are in each of {few_of(names)}: "
            f"parts of one data set, or classes? For a part write {_choices(spec, names)}; if "
            f"{few_of(names)} are the classes, write {spec}#*"
        )


def _is_split(spec: str, names: Sequence[str]) -> SourceError:
    return SourceError(f"{spec}: split into parts, not classes; name one: {_choices(spec, names)}")


def _choices(spec: str, names: Sequence[str]) -> str:
    return " or ".join(f"{spec}#{name}" for name in names[:_SHOWN])


@cache
def _readable(name: str) -> str:
    """A class name that can be stored, printed and compared, whatever the folder's name is."""
    return compared(os.fsencode(name).decode("utf-8", "backslashreplace"))


def _notes(where: str, root: Path | None, found: FolderClasses, names: Sequence[str]) -> list[str]:
    if found.is_dated:
        return [
            f"the sub-folders of {where} are named by dates or cameras, so they are not taken for "
            f"classes; if they are, write {where}#*"
        ]
    if not names:
        return [f"{where} has no sub-folders with images, so no classes"]
    notes = []
    if found.base:
        notes.append(f"the classes are the sub-folders of {'/'.join(found.base)}")
    empty = sorted(
        entry.name
        for entry in (os.scandir(root.joinpath(*found.base)) if root else ())
        if not _is_system(entry.name) and _readable(entry.name) not in names and entry.is_dir()
    )
    if empty:
        notes.append(f"{len(empty)} sub-folders have no images: {few_of(empty)}")
    if unlabelled := found.names.count(None):
        notes.append(f"{unlabelled} images are outside the sub-folders and are unlabelled")
    return notes


def list_folder(folder: str | Path, options: ReadOptions | None = None) -> Listing:
    """All image files below a folder, sorted by path, and what else is there.

    A file is an image by its suffix, or by its content where the suffix says nothing. Links are
    followed, loops of links are not; names that start with a dot are left out.
    """
    listing = Listing()
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    listing.uris = packed(_walk(root, root, frozenset(), options or ReadOptions(), listing))
    return listing


def _walk(
    folder: Path,
    root: Path,
    above: frozenset[tuple[int, int]],
    options: ReadOptions,
    listing: Listing,
) -> Iterator[Uri]:
    name = path_uri(os.fspath(folder))
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link back to a folder above
            return
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except FileNotFoundError as error:
        raise SourceError(f"{name}: no such folder; check the path") from error
    except NotADirectoryError as error:
        raise SourceError(f"{name}: expected a folder, got a file") from error
    except OSError as error:
        if folder != root and not options.strict:
            listing.denied.append(name)
            listing.unread.append(folder)
            return
        if isinstance(error, PermissionError):
            raise SourceError(
                f"{name}: no permission to list this folder; allow reading it or move it away"
            ) from error
        raise SourceError(f"{name}: cannot list this folder ({system_reason(error)})") from error
    for own, is_folder in entries:
        path = folder / own
        if options.excludes(own, path.relative_to(root).as_posix()):
            listing.excluded += 1
        elif is_folder:
            if not _is_system(own):
                yield from _walk(path, root, above | {here}, options, listing)
            elif not own.startswith("."):
                listing.system.append(path.relative_to(root).as_posix())
        elif own.startswith("."):
            continue
        elif is_image_file(path):
            yield path_uri(path)
        else:
            listing.count(own)
            if path.suffix.lower() in _HEIC:
                listing.unread.append(path)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like that of an image that can be read here."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or suffix in plugin_suffixes()


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its name, or by its content where the name says nothing."""
    is_named = is_image_name(path.name)
    return is_named or (_says_nothing(path.suffix.lower()) and looks_like_image(path))


_KNOWN_KINDS = mimetypes.MimeTypes()  # Python's own list; the machine's would differ


def _says_nothing(suffix: str) -> bool:
    if suffix in _RAW or suffix.endswith(_COPIES):
        return False
    return _KNOWN_KINDS.guess_type(f"x{suffix}") == (None, None)


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM or name.lower().endswith(".lrdata")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False
