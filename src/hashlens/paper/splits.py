"""Training images, database and queries: three protocols that papers mix up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.data.source import Source
from hashlens.data.tables import JoinedImages
from hashlens.errors import InvalidInputError, SourceError
from hashlens.paper.run import Amounts
from hashlens.types import Ids
from hashlens.workflows.score import renumbered

PROTOCOLS = {
    "paper": "all training images train and are searched, all test images are queries",
    "54000": "of all images 1,000 are queries, 5,000 train and the other 54,000 are searched",
    "59000": "of all images 1,000 are queries, 59,000 are searched, and 5,000 of those train",
}
_QUERIES, _TRAINING = 1000, 5000


class Rows(NamedTuple):
    """Rows of a collection."""

    train: Ids
    database: Ids
    queries: Ids


@dataclass(frozen=True)
class PaperSplit:
    """Training images, database and queries of a comparison: rows of ``images``.

    ``whole`` says whether no image was left out for speed.
    """

    images: Source
    rows: Rows
    protocol: str
    whole: bool

    @property
    def train(self) -> Source:
        """The training images: all that a supervised method may see the labels of."""
        return self.images.subset(self.rows.train)

    def describe(self) -> str:
        """One sentence on protocol and numbers."""
        train, database, queries = (len(part) for part in self.rows)
        numbers = f"{train:,} training images, a database of {database:,} and {queries:,} queries"
        meaning = PROTOCOLS[self.protocol]
        if self.whole:
            return f"Protocol {self.protocol} ({meaning}): {numbers}."
        most = int(np.bincount(self.images.labels[self.rows.database]).max())
        return (
            f"A subset, evenly over the classes: {numbers}. Protocol {self.protocol} ({meaning}). "
            f"A query finds at most {most:,} of its class, so no precision at k exceeds {most:,}/k."
        )


def make_split(
    train: Source, test: Source, protocol: str, amounts: Amounts, seed: int
) -> PaperSplit:
    """Choose the images of each kind."""
    if protocol not in PROTOCOLS:
        raise InvalidInputError(
            f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    joined = _join(train, test)
    rng = np.random.default_rng(seed)
    if protocol == "paper":
        rows = _paper_rows(joined.labels, len(train), amounts, rng)
    else:
        rows = _drawn_rows(joined.labels, protocol == "59000", amounts, rng)
    used = np.unique(np.concatenate(rows))
    local = Rows(*(np.searchsorted(used, part) for part in rows))
    return PaperSplit(joined.subset(used), local, protocol, amounts == Amounts())


def _join(train: Source, test: Source) -> Source:
    for part in (train, test):
        if part.label_matrix is not None or len(part.labelled) < len(part):
            raise SourceError(f"{part.spec}: expected one label for every image")
    if set(train.classes) != set(test.classes):
        raise SourceError(
            f"{train.spec} and {test.spec}: expected the same classes, got "
            f"{len(train.classes)} and {len(test.classes)} that differ"
        )
    other = renumbered(test, train.classes)
    return replace(
        train,
        spec=f"{train.spec} and {test.spec}",
        store=JoinedImages([train.store, test.store]),
        rows=np.concatenate([train.rows, len(train.store) + test.rows]),
        labels=np.concatenate([train.labels, other]).astype(np.int64),
        notes=(*train.notes, *test.notes),
    )


def _paper_rows(
    labels: NDArray[np.int64], n_train: int, amounts: Amounts, rng: np.random.Generator
) -> Rows:
    def at_most(rows: Ids, count: int | None) -> Ids:
        return rows if count is None else _draw(rows, labels, min(count, len(rows)), rng)

    database = at_most(np.arange(n_train), amounts.database)
    train = at_most(database, amounts.training)
    return Rows(train, database, at_most(np.arange(n_train, len(labels)), amounts.queries))


def _drawn_rows(
    labels: NDArray[np.int64], train_is_searched: bool, amounts: Amounts, rng: np.random.Generator
) -> Rows:
    rest = np.arange(len(labels))
    queries = _draw(rest, labels, amounts.queries or _QUERIES, rng)
    rest = np.setdiff1d(rest, queries)
    train = _draw(rest, labels, amounts.training or _TRAINING, rng)
    rest = np.setdiff1d(rest, train)
    if amounts.database is not None:
        wanted = amounts.database - (len(train) if train_is_searched else 0)
        rest = _draw(rest, labels, max(wanted, len(np.unique(labels))), rng)
    database = np.union1d(rest, train) if train_is_searched else rest
    return Rows(train, database, queries)


def _draw(rows: Ids, labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> Ids:
    """``count`` of the rows, evenly over the classes, in their order."""
    if count == len(rows):
        return rows
    kinds = np.unique(labels[rows])
    shares = np.full(len(kinds), count // len(kinds))
    shares[: count % len(kinds)] += 1
    drawn = []
    for kind, share in zip(kinds, shares, strict=True):
        held = rows[labels[rows] == kind]
        if len(held) < share:
            raise InvalidInputError(
                f"expected at least {share} images of each class for {count} images, got "
                f"{len(held)} of one"
            )
        drawn.append(rng.choice(held, int(share), replace=False))
    return np.sort(np.concatenate(drawn))
