"""Files behind a URI such as ``s3://``, ``gs://``, ``memory://`` or ``zip://a.jpg::b.zip``.

fsspec knows the schemes; each names the package that it needs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hashlens.errors import SourceError, first_line, needs_extra
from hashlens.files import Uri


def open_remote(uri: str) -> Any:
    """A file to read, which can be sought in."""
    system, path = located(uri)
    try:
        return system.open(path, "rb")
    except Exception as error:  # each file system raises its own kinds
        raise unread(uri, error) from error


def read_remote(uri: str, most: int) -> bytes:
    """The bytes of one file of at most ``most`` bytes."""
    system, path = located(uri)
    try:
        data: bytes = system.cat_file(path, end=most + 1)
    except Exception as error:
        raise unread(uri, error) from error
    if len(data) > most:
        raise SourceError(f"{uri}: over the limit of {most:,} bytes")
    return data


def list_remote(uri: str) -> list[tuple[Uri, tuple[str, ...]]]:
    """URI of every file below a prefix, and its path below that, in parts; sorted.

    With ``*``, the URI is a pattern, and the prefix is the folder before it.
    """
    system, root = located(uri)
    head, chain, rest = uri.partition("::")
    try:
        found = system.glob(root) if "*" in root else system.find(root)
    except Exception as error:
        raise unread(uri, error) from error
    if "*" in root:
        head, root = (text.partition("*")[0].rpartition("/")[0] for text in (head, root))
    head = head if head.endswith("://") else f"{head.rstrip('/')}/"
    root = root.strip("/")
    inside = (path.lstrip("/").removeprefix(root).strip("/") for path in sorted(found))
    return [(Uri(f"{head}{p}{chain}{rest}"), tuple(p.split("/"))) for p in inside if p]


def located(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    with needs_extra(f"{uri}: reading from this place", "remote"):
        import fsspec
    head, chain, rest = uri.partition("::")
    try:
        if chain:  # an archive is opened once, and stays open while files of it are read
            scheme, _, inside = head.partition("://")
            return _archive(f"{scheme}://{chain}{rest}"), inside
        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise SourceError(f"{uri}: {first_line(error)}") from error
    except Exception as error:
        raise unread(uri, error) from error
    return system, str(path)


@lru_cache(maxsize=8)
def _archive(uri: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(uri)[0]


def unread(uri: str, error: Exception) -> SourceError:
    """What to tell of a file system's own error."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
    return SourceError(f"{uri}: cannot be read ({reason}); check the name, the rights and the net")
