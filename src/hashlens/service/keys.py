"""The key that writing through the service needs: from a file or the environment."""

from __future__ import annotations

import os
from pathlib import Path

from hashlens.errors import InvalidInputError

KEY_VARIABLE = "HASHLENS_API_KEY"
_KEY_LENGTH = 16


def read_key(path: Path | None = None) -> str | None:
    """The key in a file, else in the environment's ``HASHLENS_API_KEY``, else None.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or the key is too short or no plain word.
    """
    if path is not None:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: expected a file with the API key ({error})") from None
    else:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return None
    if len(key) < _KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInputError(
            f"API key: expected at least {_KEY_LENGTH} printable ASCII characters without spaces, "
            "for example from: openssl rand -hex 32"
        )
    return key
