"""Codes laid out for searching, growing by appending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, code_words, from_words
from hashlens.errors import InvalidInputError
from hashlens.types import Codes, Ids

if TYPE_CHECKING:
    from hashlens.codes.rings import Rings


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
    rings : Rings, optional
        The codes in clusters; ``blocks`` and ``data`` are empty then.
    """

    blocks: NDArray[np.uint64]
    data: NDArray[np.uint8]
    n: int
    n_bytes: int
    rings: Rings | None = None

    @property
    def words(self) -> tuple[int, ...]:
        """As many zeros as a code has 64-bit words: tells kernels the width in its type."""
        return (0,) * code_words(self.n_bytes)


class CodeDatabase:
    """Codes in the layout that searching likes best, in memory.

    ``hamming_topk`` and its kin take a ``CodeDatabase`` where they take an array, and give the same
    results, sooner: rows are turned into columns once, and where the codes are clustered, most of
    them are never looked at (``organise``). A search and an append may run at once: the search
    sees the codes it began with.

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
        self._changing = threading.Lock()
        no_rows = flat_rows(np.zeros((0, self._n_bytes), np.uint8))
        self._state = Snapshot(_new_blocks(len(codes), self._n_bytes), no_rows, 0, self._n_bytes)
        self._places: tuple[Rings | None, NDArray[np.int64]] = (None, np.zeros(0, np.int64))
        self._asked = 0  # queries since the codes were last organised, or found too spread
        self._refused_at = 0
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

    @property
    def organised(self) -> bool:
        """Whether the codes lie in clusters."""
        return self._state.rings is not None

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
        with self._changing:
            state = self._state
            n, rings = state.n + len(codes), state.rings
            used = state.n if rings is None else rings.size
            blocks = _grown(state.blocks if rings is None else rings.blocks, used, len(codes))
            kernels.append_rows(flat_rows(codes), self._n_bytes, blocks, used, state.words)
            # readers see it from the next line on
            if rings is None:
                self._state = state._replace(blocks=blocks, n=n)
            else:
                ids = rings.ids
                if len(ids) < len(blocks) * kernels.BLOCK:
                    ids = np.full(len(blocks) * kernels.BLOCK, -1, np.int32)
                    ids[:used] = rings.ids[:used]
                ids[used : used + len(codes)] = np.arange(state.n, n)
                rings = rings._replace(blocks=blocks, ids=ids, size=used + len(codes))
                self._state = state._replace(rings=rings, n=n)

    def organise(self) -> bool:
        """Put the codes into clusters, where they are clustered; return whether they are.

        Searching then skips most of them. A database does this by itself once it has been asked
        as many queries as make up for the work (``prepare``); call it to have it done before.
        Results stay the same.
        """
        from hashlens.codes import rings as rings_module

        with self._changing:
            state = self._state
            if not rings_module.MIN_CODES <= state.n < 1 << 31:
                return False
            self._asked = 0
            if state.rings is None:
                blocks, ids = state.blocks, np.arange(state.n, dtype=np.int32)
            else:
                blocks, ids = state.rings.blocks, state.rings.ids[: state.rings.size]
            rings = rings_module.build(blocks, ids, state.words)
            if rings is None:
                self._refused_at = state.n
            else:
                self._state = state._replace(blocks=state.blocks[:0], rings=rings)
        return self.organised

    def prepare(self, queries: int) -> None:
        """Get ready for a search: organise the codes when enough has been asked to pay for it.

        Parameters
        ----------
        queries : int
            How many queries are about to be asked.
        """
        from hashlens.codes import rings as rings_module

        self._asked += queries
        state = self._state
        if self._asked < rings_module.worth_queries(state.n) or state.n < 2 * self._refused_at:
            return
        loose = state.n if state.rings is None else state.n - state.rings.clustered
        if 4 * loose > state.n:
            self.organise()

    def packed(self, rows: Any = None) -> Codes:
        """Packed codes (m, bytes) of the given rows, or of all.

        Parameters
        ----------
        rows : array_like of shape (m,), int64, optional
            Rows to return.
        """
        from hashlens.codes import kernels

        state = self._state
        at = np.arange(state.n) if rows is None else np.asarray(rows, np.int64)
        check_rows(at, state.n)
        blocks = state.blocks
        if state.rings is not None:
            blocks, at = state.rings.blocks, self._place_of_ids(state.rings, state.n)[at]
        return from_words(blocks[at // kernels.BLOCK, :, at % kernels.BLOCK], self._n_bytes)

    def _place_of_ids(self, rings: Rings, n: int) -> NDArray[np.int64]:
        """Position of each id, kept until codes are added or organised."""
        known, places = self._places
        if known is not rings:
            ids = rings.ids[: rings.size]
            used = np.flatnonzero(ids >= 0)
            places = np.empty(n, np.int64)
            places[ids[used]] = used
            self._places = (rings, places)
        return places

    def snapshot(self) -> Snapshot:
        """The codes as they are now, as the kernels read them."""
        return self._state


def check_rows(rows: Ids, count: int) -> None:
    """Raise ``InvalidInputError`` if one of these is not among ``count`` rows."""
    if rows.size and not (rows.min() >= 0 and rows.max() < count):
        raise InvalidInputError(f"rows: expected 0 to {count - 1}, got {rows.min()}..{rows.max()}")


def flat_rows(codes: Codes) -> NDArray[np.uint8]:
    """All bytes of packed codes in one read-only row; copies only what is not contiguous."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.ndarray)
    flat.flags.writeable = False  # one type for the compiler, whoever owns the array
    return flat


def rows_snapshot(codes: Codes) -> Snapshot:
    """Packed codes as the kernels read them, without preparing anything."""
    n, n_bytes = codes.shape
    return Snapshot(_new_blocks(1, n_bytes), flat_rows(codes), n, n_bytes)


def _grown(blocks: NDArray[np.uint64], used: int, more: int) -> NDArray[np.uint64]:
    """The blocks, or larger ones with the same codes where ``more`` would not fit."""
    from hashlens.codes import kernels

    if used + more <= len(blocks) * kernels.BLOCK:
        return blocks
    longer = max(used + more, used + used // 2)
    larger = np.empty((-(-longer // kernels.BLOCK), *blocks.shape[1:]), np.uint64)
    filled = -(-used // kernels.BLOCK)
    larger[:filled] = blocks[:filled]
    return larger


def _new_blocks(n: int, n_bytes: int) -> NDArray[np.uint64]:
    from hashlens.codes import kernels

    count = -(-n // kernels.BLOCK)
    return np.empty((count, code_words(n_bytes), kernels.BLOCK), np.uint64)
