"""Names of files as text: absolute paths, or ``file:`` URIs where a name is not UTF-8.

Sources name images so, and an index finds them again by the same names.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit


def path_uri(path: str | os.PathLike[str]) -> str:
    """URI of a file: its absolute path, or a ``file:`` URI where the name is not valid UTF-8.

    A ``#`` in a file name needs no escape: only names that end in ``.parquet#ROW`` are rows.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Path(absolute).as_uri()
    return absolute


def uri_path(uri: str) -> Path:
    """The file that a path or a ``file:`` URI names."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))
    return Path(os.path.expanduser(uri))
