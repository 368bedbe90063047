"""The one statement of how codes are laid out: bit order, padding, words, blocks.

Bit j of a code is in byte ``j // 8`` with value ``1 << (j % 8)`` (little-endian bit order, as in
FAISS). A code of h bits takes ``ceil(h / 8)`` bytes; the bits past h are 0, so they never count
in a Hamming distance. As 64-bit words, bit j is in word ``j // 64`` with value
``1 << (j % 64)``, zero-padded likewise; on disk words are little-endian. For searching, codes
are held in *blocks* of ``BLOCK`` codes: ``w`` words with the words as columns, ``(w, BLOCK)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import InvalidInputError
from hashlens.types import Codes

MIN_BITS = 8
MAX_BITS = 4096
BLOCK = 2048


def code_bytes(bits: int) -> int:
    """Bytes per packed code of ``bits`` bits."""
    return (bits + 7) // 8


def code_words(n_bytes: int) -> int:
    """64-bit words per code of ``n_bytes`` bytes."""
    return (n_bytes + 7) // 8


def check_bits(bits: int) -> int:
    """Return ``bits``, or raise if codes cannot have this length."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise InvalidInputError(
            f"codes have {MIN_BITS} to {MAX_BITS} bits, got {bits}; 48 is a good first choice"
        )
    return bits


def check_codes(codes: Any, name: str = "codes") -> Codes:
    """Return ``codes`` as an array, or raise if it does not hold packed codes (n, bytes), uint8."""
    array = np.asarray(codes)
    if array.dtype != np.uint8 or array.ndim != 2:
        raise InvalidInputError(
            f"{name}: expected a uint8 array of shape (n, bytes), got {array.dtype} of shape "
            f"{array.shape}; pack 0/1 bits with hashlens.pack_bits"
        )
    if not 1 <= array.shape[1] <= MAX_BITS // 8:
        raise InvalidInputError(
            f"{name}: codes take 1 to {MAX_BITS // 8} bytes, got {array.shape[1]}"
        )
    return array


def pack_bits(bits: Any) -> Codes:
    """Pack 0/1 values into codes.

    Parameters
    ----------
    bits : array_like of shape (n, h), bool or integer
        Values 0 and 1 only.

    Returns
    -------
    ndarray of shape (n, ceil(h / 8)), uint8

    Raises
    ------
    InvalidInputError
        If the shape is not (n, h) or a value is neither 0 nor 1.

    Examples
    --------
    >>> pack_bits([[1, 0, 0, 0, 0, 0, 0, 0, 0, 1]])
    array([[1, 2]], dtype=uint8)
    """
    array = np.asarray(bits)
    if array.ndim != 2:
        raise InvalidInputError(f"bits: expected shape (n, h), got {array.shape}")
    if array.dtype != np.bool_ and not bool(np.isin(array, (0, 1)).all()):
        raise InvalidInputError("bits: expected 0 and 1 only; binarise with `values >= 0.5`")
    return np.packbits(array.astype(np.bool_), axis=1, bitorder="little")


def unpack_bits(codes: Any, bits: int | None = None) -> NDArray[np.uint8]:
    """Unpack codes into 0/1 values.

    Parameters
    ----------
    codes : array_like of shape (n, bytes), uint8
        Packed codes.
    bits : int, optional
        Length of a code; 8 * bytes by default.

    Returns
    -------
    ndarray of shape (n, bits), uint8

    Raises
    ------
    InvalidInputError
        If ``codes`` does not hold packed codes, or they have fewer bits than ``bits``.
    """
    array = check_codes(codes)
    held = 8 * array.shape[1]
    count = held if bits is None else bits
    if not 0 <= count <= held:
        raise InvalidInputError(f"bits: expected 0 to {held} for these codes, got {count}")
    return np.unpackbits(array, axis=1, count=count, bitorder="little")


def to_words(codes: Codes) -> NDArray[np.uint64]:
    """Packed codes (n, bytes) as words (n, ceil(bytes / 8)), zero-padded."""
    n, n_bytes = codes.shape
    if n_bytes % 8 == 0 and codes.flags.c_contiguous:
        return codes.view("<u8")
    padded = np.zeros((n, 8 * code_words(n_bytes)), dtype=np.uint8)
    padded[:, :n_bytes] = codes
    return padded.view("<u8")


def from_words(words: NDArray[np.uint64], n_bytes: int) -> Codes:
    """Words (n, w) back to packed codes (n, n_bytes)."""
    contiguous = np.ascontiguousarray(words, dtype="<u8")
    return np.ascontiguousarray(contiguous.view(np.uint8)[:, :n_bytes])


def to_blocks(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words (n, w) as blocks (m, w, BLOCK), the last one filled up with zeros."""
    count = -(-len(words) // BLOCK)
    padded = np.zeros((count * BLOCK, words.shape[1]), np.uint64)
    padded[: len(words)] = words
    return np.ascontiguousarray(padded.reshape(count, BLOCK, -1).transpose(0, 2, 1))


def words_at(blocks: NDArray[np.uint64], positions: NDArray[Any]) -> NDArray[np.uint64]:
    """Words (n, w) of the codes at n positions in blocks."""
    found: NDArray[np.uint64] = np.ascontiguousarray(
        blocks[positions // BLOCK, :, positions % BLOCK]
    )
    return found
