"""Images in object storage: listed by URI, read as bytes where they are encoded."""

from __future__ import annotations

import re
from typing import Any

from hashlens.data.folders import SUFFIXES
from hashlens.errors import MissingExtraError, SourceError

_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://.+")


def is_remote(uri: str) -> bool:
    """Whether a URI names an object behind a file system, such as ``s3://bucket/photo.jpg``."""
    return _SCHEME.fullmatch(uri) is not None


def file_system(uri: str) -> tuple[Any, str]:
    """PyArrow's file system for a URI, and the path in it.

    Schemes that PyArrow does not know itself are looked up through fsspec.

    Raises
    ------
    SourceError
        If nothing installed can open the scheme.
    MissingExtraError
        If PyArrow is not installed.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow import fs as arrow_fs
    except ImportError as error:
        raise MissingExtraError("reading from object storage", "ray") from error
    try:
        return arrow_fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except (ArrowException, OSError, ValueError):
        scheme = uri.split("://", 1)[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise SourceError(
            f"{uri}: the scheme {scheme}:// cannot be opened ({error}); install the fsspec package "
            "for it"
        ) from error
    return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(system)), path


def list_remote(uri: str) -> list[tuple[str, str | None]]:
    """URI and class of every image under a prefix, sorted; the class is its folder's name.

    Raises
    ------
    SourceError
        If nothing is there, or it holds no images.
    """
    from pyarrow import fs as arrow_fs

    system, root = file_system(uri)
    try:
        infos = system.get_file_info(arrow_fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise SourceError(
            f"{uri}: cannot be listed ({error}); check the name and rights"
        ) from error
    prefix, root = uri.rstrip("/"), root.rstrip("/")
    found = []
    for info in infos:
        inside = info.path[len(root) :].lstrip("/")
        if info.is_file and inside.lower().endswith(tuple(SUFFIXES)):
            parts = inside.split("/")
            found.append((f"{prefix}/{inside}", parts[0] if len(parts) > 1 else None))
    if not found:
        raise SourceError(f"{uri}: expected images under this prefix, found none; check the name")
    return sorted(found)


def read_remote(uri: str) -> bytes:
    """The bytes of one object.

    Raises
    ------
    SourceError
        If it cannot be read.
    """
    system, path = file_system(uri)
    try:
        with system.open_input_file(path) as file:
            return bytes(file.read())
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read ({error})") from error
