"""How good a set of codes is, judged by the codes themselves: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_codes, unpack_bits
from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import (
    LabelArray,
    Scores,
    check_labels,
    counts_by_distance,
    precision_within_radius,
)
from hashlens.types import Codes

STUCK_SHARE = 0.005
TWIN_CORRELATION = 0.95


class Occupancy(NamedTuple):
    """How images share codes."""

    distinct: int  # different codes
    alone: int  # images whose code no other image has
    largest: int  # images of the most frequent code
    # entropy in bits of the distribution of images over codes; at most log2 of the images
    entropy: float


@dataclass(frozen=True)
class RadiusCurve:
    """What a search within each Hamming radius 0, 1, ..., bits would find, over all queries."""

    within: NDArray[np.int64]  # (bits + 1,): pairs at each distance, of one class and of two
    between: NDArray[np.int64]
    # (bits + 1,): mean share of relevant images within the radius; 0 for a query that finds nothing
    precision: Scores
    # (bits + 1,): mean share of a query's relevant images that are within the radius
    recall: Scores
    pool: Scores  # (bits + 1,): mean share of all other images that are within the radius
    empty: Scores  # (bits + 1,): share of queries with nothing within the radius
    queries: int  # images used as queries

    @property
    def best(self) -> int:
        """Radius of the highest harmonic mean of precision and recall; the smallest if tied."""
        both = self.precision + self.recall
        return int(np.argmax(2 * self.precision * self.recall / np.where(both > 0, both, 1.0)))


@dataclass(frozen=True)
class Inspection:
    """Statistics of n codes."""

    images: int
    bits: int
    ones: Scores  # (bits,): share of images in which each bit is 1
    entropy: Scores  # (bits,): of each bit, 0 to 1
    # (bits, bits): Pearson correlation of bits; 0 with a bit that never changes, 1 on the diagonal
    correlation: Scores
    occupancy: Occupancy  # how images share codes
    radii: RadiusCurve | None  # None where fewer than two images of one class are labelled

    @property
    def stuck(self) -> list[int]:
        """Bits that take one value in all but 0.5 % of the images."""
        share = np.minimum(self.ones, 1 - self.ones)
        return [int(bit) for bit in np.flatnonzero(share < STUCK_SHARE)]

    @property
    def twins(self) -> list[tuple[int, int]]:
        """Pairs of bits that say the same, or the opposite (correlation of 0.95 or more)."""
        upper = np.triu(np.abs(self.correlation), k=1)
        return [(int(a), int(b)) for a, b in np.argwhere(upper >= TWIN_CORRELATION)]

    @property
    def mean_correlation(self) -> float:
        """Mean absolute correlation between two bits."""
        pairs = np.abs(self.correlation)[np.triu_indices(self.bits, k=1)]
        return float(pairs.mean()) if len(pairs) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Keys as ``inspect --json`` prints them."""
        radii, curves = self.radii, {}
        if radii is not None:
            names = ("within", "between", "precision", "recall", "pool", "empty")
            curves = {name: getattr(radii, name).tolist() for name in names}
        return {
            "bits": self.bits,
            "n_images": self.images,
            "ones": self.ones.tolist(),
            "entropy": self.entropy.tolist(),
            "mean_entropy": float(self.entropy.mean()),
            "stuck_bits": self.stuck,
            "twin_bits": self.twins,
            "mean_correlation": self.mean_correlation,
            "occupancy": self.occupancy._asdict(),
            "radius": None if radii is None else radii.best,
            "radii": None if radii is None else {"n_queries": radii.queries, **curves},
        }


def inspect_codes(
    codes: Codes, labels: LabelArray, *, bits: int, queries: int = 2000, seed: int = 0
) -> Inspection:
    """Statistics of codes: their bits, how images share them, how far apart classes are."""
    array = check_codes(codes)
    if len(array) < 2:
        raise InvalidInputError(f"expected at least two codes, got {len(array)}")
    unpacked = unpack_bits(array, bits)
    ones = np.asarray(unpacked.mean(axis=0), dtype=np.float64)
    return Inspection(
        len(array),
        bits,
        ones,
        bit_entropy(ones),
        bit_correlation(unpacked),
        code_occupancy(array),
        radius_curve(array, check_labels(labels, len(array), "codes"), bits, queries, seed),
    )


def bit_entropy(ones: Scores) -> Scores:
    """Entropy in bits of binary variables, from their shares of ones."""
    shares = np.stack([ones, 1 - ones])
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(-(shares * logs).sum(axis=0) + 0.0, dtype=np.float64)


def bit_correlation(unpacked: NDArray[np.uint8]) -> Scores:
    """Pearson correlation between bits, shape (bits, bits), of 0/1 values (n, bits)."""
    centred = unpacked - unpacked.mean(axis=0)
    covariance = centred.T @ centred
    spread = np.sqrt(np.diag(covariance))
    scale = np.outer(spread, spread)
    correlation = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(np.clip(correlation, -1, 1), dtype=np.float64)


def code_occupancy(codes: Codes) -> Occupancy:
    """How images share codes, of packed codes (n, bytes)."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return Occupancy(
        len(counts),
        int((counts == 1).sum()),
        int(counts.max()),
        float(-(shares * np.log2(shares)).sum() + 0.0),
    )


def radius_curve(
    codes: Codes, labels: LabelArray, bits: int, queries: int, seed: int
) -> RadiusCurve | None:
    """Compare labelled images with all other labelled ones, distance by distance."""
    labelled = np.flatnonzero(labels.any(axis=1) if labels.ndim == 2 else labels >= 0)
    codes, labels = codes[labelled], labels[labelled]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(codes))[:queries])
    sizes, good = counts_by_distance(
        codes, codes[chosen], labels, labels[chosen], bits=bits, exclude=chosen
    )
    relevant = good.sum(axis=1)
    sizes, good, relevant = sizes[relevant > 0], good[relevant > 0], relevant[relevant > 0]
    if not len(relevant):
        return None
    found = sizes.cumsum(axis=1)
    precision = [precision_within_radius(sizes, good, radius).mean() for radius in range(bits + 1)]
    return RadiusCurve(
        good.sum(axis=0),
        (sizes - good).sum(axis=0),
        np.array(precision),
        np.asarray((good.cumsum(axis=1) / relevant[:, None]).mean(axis=0)),
        np.asarray((found / found[:, -1:]).mean(axis=0)),
        np.asarray((found == 0).mean(axis=0)),
        len(relevant),
    )
