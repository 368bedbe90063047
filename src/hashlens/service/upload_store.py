"""Images that clients add are kept in the index's folder, named by their content."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path

from PIL import Image

from hashlens.service.errors import Refused
from hashlens.service.uploads import FORMATS

log = logging.getLogger("hashlens.service")

FOLDER = "uploads"


class UploadStore:
    """Files ``uploads/<sha256>.<extension>`` of one index; a client's file name plays no part.

    Parameters
    ----------
    index : Path
        The index's folder.
    """

    def __init__(self, index: Path) -> None:
        self._folder = index.resolve() / FOLDER

    def keep(self, data: bytes) -> str:
        """Store an image durably; returns its URI.

        Parameters
        ----------
        data : bytes
            An image that was decoded before.

        Raises
        ------
        Refused
            503 if it cannot be written, for example because the disk is full.
        """
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            extension = FORMATS[image.format or "PNG"]
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.{extension}"
        if path.is_file() and path.stat().st_size == len(data):
            return str(path)
        try:
            self._write(path, data)
        except OSError as error:
            log.error("%s: an image could not be stored: %s", self._folder, error)
            raise Refused(503, "the image cannot be stored now", Retry_After="5") from None
        return str(path)

    def _write(self, path: Path, data: bytes) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(exist_ok=True)
            _sync(self._folder.parent)
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        _sync(self._folder)


def _sync(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
