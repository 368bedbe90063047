"""Codes laid out for searching, growing by appending."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_words, from_words
from hashlens.errors import InvalidInputError
from hashlens.protocols import Codes


class Snapshot(NamedTuple):
    """Codes as the kernels read them.

    Attributes
    ----------
    blocks : ndarray of shape (m, w, BLOCK), uint64
        The codes, words as columns; or one empty block to work in, where ``data`` has the codes.
    data : ndarray of shape (n * n_bytes,), uint8
        Packed rows, read-only; empty where ``blocks`` holds the codes.
    n : int
        Number of codes.
    n_bytes : int
        Bytes a packed code.
    """

    blocks: NDArray[np.uint64]
    data: NDArray[np.uint8]
    n: int
    n_bytes: int

    @property
    def words(self) -> tuple[int, ...]:
        """As many zeros as a code has 64-bit words: tells kernels the width in its type."""
        return (0,) * code_words(self.n_bytes)


class CodeDatabase:
    """Codes in the layout that searching likes best, in memory.

    ``hamming_topk`` and its kin take a ``CodeDatabase`` where they take an array. They then skip
    turning rows into columns at each call, which is most of the time of a single query.
    A search and an append may run at once: the search sees the codes it began with.

    Parameters
    ----------
    codes : array_like of shape (n, bytes), uint8
        Packed codes (``hashlens.pack_bits``); copied, so the source may change or close.

    Raises
    ------
    InvalidInputError
        If ``codes`` does not hold packed codes.

    Examples
    --------
    >>> import numpy as np
    >>> database = CodeDatabase(np.zeros((3, 6), np.uint8))
    >>> database.append(np.ones((2, 6), np.uint8))
    >>> len(database), database.n_bytes
    (5, 6)
    """

    def __init__(self, codes: Any) -> None:
        codes = check_codes(codes)
        self._n_bytes = int(codes.shape[1])
        self._writing = threading.Lock()
        no_rows = flat_rows(np.zeros((0, self._n_bytes), np.uint8))
        self._state = Snapshot(_new_blocks(len(codes), self._n_bytes), no_rows, 0, self._n_bytes)
        self.append(codes)

    @classmethod
    def empty(cls, n_bytes: int) -> CodeDatabase:
        """A database without codes, for codes of ``n_bytes`` bytes."""
        return cls(np.zeros((0, n_bytes), np.uint8))

    def __len__(self) -> int:
        return self._state.n

    @property
    def n_bytes(self) -> int:
        """Bytes a packed code."""
        return self._n_bytes

    def append(self, codes: Any) -> None:
        """Add codes at the end.

        Parameters
        ----------
        codes : array_like of shape (m, bytes), uint8
            Packed codes of the same width.

        Raises
        ------
        InvalidInputError
            If shape or dtype do not fit.
        """
        from hashlens.codes import kernels

        codes = check_codes(codes)
        if codes.shape[1] != self._n_bytes:
            raise InvalidInputError(
                f"codes: expected {self._n_bytes} bytes a code as in the database, "
                f"got {codes.shape[1]}; both must come from the same model"
            )
        with self._writing:
            state = self._state
            n = state.n + len(codes)
            blocks = state.blocks
            if n > len(blocks) * kernels.BLOCK:
                blocks = _new_blocks(max(n, state.n + state.n // 2), self._n_bytes)
                used = -(-state.n // kernels.BLOCK)
                blocks[:used] = state.blocks[:used]
            kernels.append_rows(flat_rows(codes), self._n_bytes, blocks, state.n, state.words)
            self._state = state._replace(blocks=blocks, n=n)  # readers see it from here on

    def packed(self, rows: Any = None) -> Codes:
        """Packed codes (m, bytes) of the given rows, or of all.

        Parameters
        ----------
        rows : array_like of shape (m,), int64, optional
            Rows to return.
        """
        state = self._state
        block = state.blocks.shape[2]
        at = np.arange(state.n) if rows is None else np.asarray(rows, np.int64)
        if len(at) and not (at.min() >= 0 and at.max() < state.n):
            raise InvalidInputError(
                f"rows: expected 0 to {state.n - 1}, got {at.min()}..{at.max()}"
            )
        return from_words(state.blocks[at // block, :, at % block], self._n_bytes)

    def snapshot(self) -> Snapshot:
        """The codes as they are now, as the kernels read them."""
        return self._state


def flat_rows(codes: Codes) -> NDArray[np.uint8]:
    """All bytes of packed codes in one read-only row; copies only what is not contiguous."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.ndarray)
    flat.flags.writeable = False  # one type for the compiler, whoever owns the array
    return flat


def rows_snapshot(codes: Codes) -> Snapshot:
    """Packed codes as the kernels read them, without preparing anything."""
    n, n_bytes = codes.shape
    return Snapshot(_new_blocks(1, n_bytes), flat_rows(codes), n, n_bytes)


def _new_blocks(n: int, n_bytes: int) -> NDArray[np.uint64]:
    from hashlens.codes import kernels

    count = -(-n // kernels.BLOCK)
    return np.empty((count, code_words(n_bytes), kernels.BLOCK), np.uint64)
