"""Codes laid out for searching, growing by appending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import BLOCK, check_codes, code_words, from_words, to_words, words_at
from hashlens.errors import InvalidInputError
from hashlens.types import Codes, Ids

if TYPE_CHECKING:
    from hashlens.codes.rings import Rings


class CodeBlocks(NamedTuple):
    """Codes as the kernels read them."""

    # (m, w, BLOCK): the codes, words as columns; or one empty block to work in, where ``data`` has
    # the codes
    blocks: NDArray[np.uint64]
    # (n * n_bytes,): packed rows, read-only; empty where ``blocks`` holds the codes
    data: NDArray[np.uint8]
    n: int  # number of codes
    n_bytes: int  # bytes per packed code
    rings: Rings | None = None  # the codes in clusters; ``blocks`` and ``data`` are empty then

    @property
    def words(self) -> tuple[int, ...]:
        """As many zeros as a code has 64-bit words: the type tells the kernels the width."""
        return (0,) * code_words(self.n_bytes)

    def first(self, n: int) -> CodeBlocks:
        """The first n of these codes, in the same memory."""
        if n == self.n:
            return self
        return self._replace(n=n, rings=None if self.rings is None else self.rings.first(n))


_ALL = np.zeros(0, np.bool_)


class Allowed(NamedTuple):
    """Which codes may be results: made once for all searches that have this in common."""

    n: int  # codes after the first n of a database are not searched
    mask: NDArray[np.bool_]  # (n,): the codes that may be results; empty: all. Nobody changes it
    available: int  # how many these are


class CodeDatabase:
    """Codes in the layout that is fastest to search, in memory.

    ``hamming_topk`` and the other searches take a ``CodeDatabase`` in place of an array, and give
    the same results, sooner: rows are turned into columns once, and where the codes are
    clustered, most of them are skipped (``organise``). A search and an append may run at the same
    time: the search sees the codes that were there when it began.

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
        n_bytes = int(codes.shape[1])
        no_rows = flat_rows(np.zeros((0, n_bytes), np.uint8))
        self._changing, self._organising = threading.Lock(), threading.Lock()
        blocks = _new_blocks(with_room(len(codes)), n_bytes)
        self._codes = CodeBlocks(blocks, no_rows, 0, n_bytes)
        self._places: tuple[Any, NDArray[np.uint32]] = (None, np.zeros(0, np.uint32))
        self._asked = 0  # queries since the codes were last organised, or found too spread
        self._refused_at = 0
        self.append(codes)

    def __len__(self) -> int:
        return self._codes.n

    @property
    def n_bytes(self) -> int:
        """Bytes per packed code."""
        return self._codes.n_bytes

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
        codes = check_codes(codes)
        check_width(self.n_bytes, codes, "codes")
        with self._changing:
            self._append(self._codes, codes)

    def _append(self, now: CodeBlocks, codes: Codes) -> None:
        n, rings = now.n + len(codes), now.rings
        used = now.n if rings is None else rings.size
        blocks = _grown(now.blocks if rings is None else rings.blocks, used, len(codes))
        _store(codes, blocks, used)
        # readers see the new codes when self._codes is set
        if rings is None:
            self._codes = now._replace(blocks=blocks, n=n)
        else:
            ids = rings.ids
            if len(ids) < len(blocks) * BLOCK:
                ids = np.empty(len(blocks) * BLOCK, np.int32)
                ids[:used] = rings.ids[:used]
            ids[used : used + len(codes)] = np.arange(now.n, n)
            rings = rings._replace(blocks=blocks, ids=ids, n=n, size=used + len(codes))
            self._codes = now._replace(rings=rings, n=n)

    def organise(self) -> bool:
        """Sort the codes into clusters if they are clustered; return whether they are.

        Searching then skips most of them. A database does this by itself after enough queries to
        pay for the work (``prepare``); call this to have it done earlier. Results stay the same.
        """
        from hashlens.codes.rings import MIN_CODES, build

        with self._organising:
            now = self._codes
            if not MIN_CODES <= now.n < 1 << 31:
                return False
            self._asked = 0
            if now.rings is None:
                rings = build(now.blocks, np.zeros(0, np.int32), now.n, now.words)
            else:
                rings = build(now.rings.blocks, now.rings.ids, now.rings.size, now.words)
            if rings is None:
                self._refused_at = now.n
                return self._codes.rings is not None
            with self._changing:
                since = self.packed(np.arange(now.n, len(self)))  # appended meanwhile
                # at once: a search must not see the clusters without what came since
                self._append(now._replace(blocks=now.blocks[:0], rings=rings), since)
            return True

    def prepare(self, queries: int) -> None:
        """Get ready for so many queries: organise the codes if there were enough to pay for it.

        A thread of its own does that, so no search waits for it.
        """
        self._asked += queries
        now = self._codes
        loose = now.n if now.rings is None else now.n - now.rings.clustered
        if not loose:
            return
        from hashlens.codes.rings import MIN_CODES, worth_queries

        if self._asked * loose < worth_queries(now.n) * now.n:
            return  # what is not in clusters has cost less than clustering all would
        if now.n >= max(MIN_CODES, 2 * self._refused_at) and not self._organising.locked():
            self._asked = 0
            threading.Thread(target=self.organise, name="hashlens-organise", daemon=True).start()

    def packed(self, rows: Any = None) -> Codes:
        """Packed codes (m, bytes) of the given rows (m,), or of all."""
        now = self._codes
        at = np.arange(now.n) if rows is None else np.asarray(rows, np.int64)
        check_rows(at, now.n)
        blocks = now.blocks
        if now.rings is not None:
            blocks, at = now.rings.blocks, self._place_of_ids(now.rings, at)
        return from_words(words_at(blocks, at), self.n_bytes)

    def _place_of_ids(self, rings: Rings, rows: Ids) -> Ids:
        """Positions of codes; those of clustered ones are kept until the codes are organised."""
        at = rows - rings.clustered + rings.loose  # of those added since
        clustered = rows < rings.clustered
        if clustered.any():
            known, places = self._places
            if known is not rings.starts:
                ids = rings.ids[: rings.loose]
                used = np.flatnonzero(ids >= 0)
                places = np.empty(rings.clustered, np.uint32)
                places[ids[used]] = used
                self._places = (rings.starts, places)
            at[clustered] = places[rows[clustered]]
        return at

    def current(self) -> CodeBlocks:
        """The codes as they are now, as the kernels read them."""
        return self._codes


def check_rows(rows: Ids, count: int) -> None:
    """Raise ``InvalidInputError`` if one of these is not among ``count`` rows."""
    if rows.size and not (rows.min() >= 0 and rows.max() < count):
        raise InvalidInputError(f"rows: expected 0 to {count - 1}, got {rows.min()}..{rows.max()}")


def check_width(n_bytes: int, codes: Codes, name: str) -> None:
    """Raise ``InvalidInputError`` if these codes are not as wide as those of a database."""
    if codes.shape[1] != n_bytes:
        raise InvalidInputError(
            f"{name}: expected {n_bytes} bytes per code as in the database, "
            f"got {codes.shape[1]}; both must come from the same model"
        )


def allow(allowed: Any, n: int) -> Allowed:
    """Which of n codes a mask allows; without one, all."""
    if isinstance(allowed, Allowed):
        return allowed
    if allowed is None:
        return Allowed(n, _ALL, n)
    mask = check_allowed(allowed, n)
    return Allowed(n, mask, int(np.count_nonzero(mask)))


def check_allowed(allowed: Any, n: int) -> NDArray[np.bool_]:
    """A copy of a mask of ``n`` codes, so that the caller may go on writing, or an error."""
    mask = np.array(allowed)
    if mask.dtype != np.bool_ or mask.shape != (n,):
        raise InvalidInputError(
            f"allowed: expected bool of shape ({n},), got {mask.dtype} of {mask.shape}"
        )
    return mask


def flat_rows(codes: Codes) -> NDArray[np.uint8]:
    """All bytes of packed codes in one read-only row; copies only what is not contiguous."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.ndarray)
    flat.flags.writeable = False  # one type for the compiler, whoever owns the array
    return flat


def blocks_of_rows(codes: Codes) -> CodeBlocks:
    """Packed codes as the kernels read them, without preparing anything."""
    n, n_bytes = codes.shape
    return CodeBlocks(_new_blocks(1, n_bytes), flat_rows(codes), n, n_bytes)


def _grown(blocks: NDArray[np.uint64], used: int, more: int) -> NDArray[np.uint64]:
    """The blocks, or larger ones with the same codes where ``more`` would not fit."""
    if used + more <= len(blocks) * BLOCK:
        return blocks
    larger = np.empty((-(-with_room(used + more) // BLOCK), *blocks.shape[1:]), np.uint64)
    filled = -(-used // BLOCK)
    larger[:filled] = blocks[:filled]
    return larger


def _store(codes: Codes, blocks: NDArray[np.uint64], used: int) -> None:
    """Put packed codes into blocks that hold ``used`` codes already."""
    row = 0
    while row < len(codes):
        at = (used + row) % BLOCK
        count = min(BLOCK - at, len(codes) - row)
        blocks[(used + row) // BLOCK, :, at : at + count] = to_words(codes[row : row + count]).T
        row += count


def _new_blocks(n: int, n_bytes: int) -> NDArray[np.uint64]:
    return np.empty((-(-n // BLOCK), code_words(n_bytes), BLOCK), np.uint64)


def with_room(n: int) -> int:
    """Codes to have room for, where n come first: memory that is not written to costs nothing."""
    return n + n // 2
