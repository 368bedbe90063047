"""One append-only array on disk: rows of bytes, and a checksum for each block of them."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import IndexStoreError

BLOCK_BYTES = 1 << 20
"""Bytes under one checksum."""

_RESTORE = "restore the folder from a backup, or make the index anew with `hashlens index create`"


@dataclass(frozen=True)
class ArrayFile:
    """A file of fixed-size rows; how many of them count is said by the database beside it.

    Parameters
    ----------
    path : Path
        The file.
    dtype : numpy.dtype
        Of one value; little-endian.
    width : int
        Values a row; 0 where the index holds no such array.
    """

    path: Path
    dtype: np.dtype[Any]
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        return int(self.dtype.itemsize) * self.width

    def create(self) -> None:
        """Make the file, empty; what stood there is dropped."""
        with self.path.open("wb") as file:
            os.fsync(file.fileno())

    def append(
        self, rows: NDArray[Any], count: int, checksums: Mapping[int, int]
    ) -> dict[int, int]:
        """Write rows behind the first ``count``, and sync them to the disk.

        What stands past ``count`` was left by a writer that died, and is dropped.

        Parameters
        ----------
        rows : ndarray of shape (m, width)
            The new rows.
        count : int
            Rows that are committed.
        checksums : mapping of int to int
            Checksum of the last block, if it is partly filled.

        Returns
        -------
        dict of int to int
            Checksums of the blocks that were touched.

        Raises
        ------
        IndexStoreError
            If the file is missing or shorter than what is committed.
        OSError
            If it cannot be written, as on a full disk.
        """
        data = np.ascontiguousarray(rows, self.dtype).view(np.uint8).reshape(-1).data
        start = count * self.row_bytes
        with self._open(count, "r+b") as file:
            file.truncate(start)
            file.seek(start)
            written = 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)  # give the space back
                raise
        return _extended(data, start, checksums)

    def map(self, count: int, *, scattered: bool = False) -> NDArray[Any]:
        """The first ``count`` rows, memory-mapped and read-only, shape (count, width).

        They stay readable when the file is deleted. ``scattered`` rows are read here and there,
        so that reading ahead would be waste.

        Raises
        ------
        IndexStoreError
            If the file is missing or shorter than that.
        """
        length = count * self.row_bytes
        with self._open(count) as file:
            if length == 0:
                return np.empty((count, self.width), self.dtype)
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        if scattered and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, self.dtype).reshape(count, self.width)

    def damaged_blocks(self, rows: NDArray[Any], checksums: Mapping[int, int]) -> Iterator[int]:
        """Read mapped rows from the first on; yield the blocks that differ from their checksum."""
        data = rows.reshape(-1).view(np.uint8).data
        for block in range(-(-len(data) // BLOCK_BYTES)):
            piece = data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if checksums.get(block) != zlib.crc32(piece):
                yield block

    def require_intact(self, rows: NDArray[Any], checksums: Mapping[int, int]) -> None:
        """Raise ``IndexStoreError`` that names the first damaged block, if there is one."""
        for block in self.damaged_blocks(rows, checksums):
            raise IndexStoreError(self.damage(block))

    def _open(self, count: int, mode: Literal["rb", "r+b"] = "rb") -> FileIO:
        """The file, open and unbuffered, if it holds ``count`` rows or more."""
        try:
            file = self.path.open(mode, buffering=0)
        except FileNotFoundError:
            raise IndexStoreError(f"{self.path}: the file is missing; {_RESTORE}") from None
        size = os.fstat(file.fileno()).st_size
        if size < count * self.row_bytes:
            file.close()
            raise IndexStoreError(
                f"{self.path}: expected {count * self.row_bytes} bytes or more, got {size}: "
                f"the file was cut; {_RESTORE}"
            )
        return file

    def damage(self, block: int) -> str:
        """A line that says that a block is damaged, and what to do."""
        at = block * BLOCK_BYTES
        return (
            f"{self.path}: block {block} (from byte {at}) differs from its checksum in "
            f"index.sqlite; {_RESTORE}"
        )


def _extended(data: Any, start: int, checksums: Mapping[int, int]) -> dict[int, int]:
    """Checksums of the blocks that ``data`` touches when it is written at byte ``start``."""
    result: dict[int, int] = {}
    at = 0
    while at < len(data):
        block, inside = divmod(start + at, BLOCK_BYTES)
        piece = data[at : at + BLOCK_BYTES - inside]
        result[block] = zlib.crc32(piece, checksums[block] if inside else 0)
        at += len(piece)
    return result
