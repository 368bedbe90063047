"""Scores a model: encodes database and queries, searches in three ways, evaluates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hashlens import __version__
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.evaluation.metrics import CUTOFF
from hashlens.evaluation.results import EncodedSet, Evaluation
from hashlens.evaluation.runner import evaluate, top_class_error
from hashlens.experiments.labels import Named, match_classes, match_model
from hashlens.index.arrays import ArraySearcher, default_pool
from hashlens.models.encoder import Encoder
from hashlens.models.encoding import EncodedImages, encode_source
from hashlens.protocols import Ids, Mode, Searcher, Skipped

MakeSearcher = Callable[[Source, EncodedImages], Searcher]
"""From the database's source and what was encoded of it to what is scored; ids are rows."""

SCORED_MODES: tuple[Mode, ...] = ("bcs", "hds", "es")


def in_memory(source: Source, encoded: EncodedImages) -> Searcher:
    """Search the arrays as they are."""
    return ArraySearcher(encoded.codes, encoded.features)


@dataclass(frozen=True)
class ScoredModel:
    """What ``hashlens evaluate`` found.

    Attributes
    ----------
    evaluation : Evaluation
        The scores.
    database, queries : EncodedSet
        What was searched, and with what; labels are places in ``classes``.
    classes : tuple of str
        Class names.
    database_uris, query_uris : sequence of str
        Where the images lie.
    database_spec, query_spec : str
        The sources.
    fingerprint : str
        Of the model.
    radius, pool : int or None
        Of ``hds``: within a radius, or a pool of a size.
    left_out : int
        Queries that are themselves in the database, left out of their own results.
    skipped : tuple of Skipped
        Images that could not be read.
    warnings : tuple of str
        What a person should know.
    """

    evaluation: Evaluation
    database: EncodedSet
    queries: EncodedSet
    classes: tuple[str, ...]
    database_uris: Sequence[str]
    query_uris: Sequence[str]
    database_spec: str
    query_spec: str
    fingerprint: str
    radius: int | None
    pool: int | None
    left_out: int
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: the evaluation, and what it was made of."""
        return {
            **self.evaluation.to_dict(),
            "database": self.database_spec,
            "queries": self.query_spec,
            "fingerprint": self.fingerprint,
            "hashlens": __version__,
            "radius": self.radius,
            "pool": self.pool,
            "queries_left_out_of_their_own_results": self.left_out,
            "skipped": [{"image": image.name, "reason": image.reason} for image in self.skipped],
            "warnings": list(self.warnings),
        }


def score_model(
    encoder: Encoder,
    database: Source,
    queries: Source,
    *,
    radius: int | None = None,
    pool: int | None = None,
    modes: Sequence[Mode] = SCORED_MODES,
    make_searcher: MakeSearcher = in_memory,
    strict: bool = False,
    progress: bool = False,
) -> ScoredModel:
    """Encode both sources, search one with the other, and score the results.

    Queries that are in the database as well (by URI) are left out of their own results.

    Parameters
    ----------
    encoder : Encoder
        The model.
    database, queries : Source
        Labelled images.
    radius : int, optional
        Hamming radius of ``hds`` and ``bcs``.
    pool : int, optional
        Size of the pool of ``hds``, where no radius is given; ``default_pool(1000)``.
    modes : sequence of {"bcs", "hds", "es"}
        Ways to search that are scored.
    make_searcher : callable
        Makes what is searched; arrays in memory by default.
    strict : bool
        Raise on an unreadable image instead of skipping it.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SourceError
        If the sources have no class in common, or no image of one can be read.
    ImageError
        If strict and an image cannot be read.
    """
    queries, unlabelled = _labelled(queries, database)
    matched = match_classes(_named(database), _named(queries))  # before hours of encoding
    truth, model_warnings = match_model(_named(queries), encoder.classes)
    held = encode(encoder, database, strict=strict, progress=progress)
    asked = encode(encoder, queries, strict=strict, progress=progress)
    exclude = _own_rows(held, asked)
    if radius is None and pool is None:
        pool = default_pool(CUTOFF)
    wrong = None
    if truth is not None and asked.scores is not None:
        wrong = top_class_error(asked.scores, truth[asked.positions])
    database_set = EncodedSet(held.codes, held.features, matched.database[held.positions])
    query_set = EncodedSet(asked.codes, asked.features, matched.queries[asked.positions])
    evaluation = evaluate(
        make_searcher(database, held),
        database_set,
        query_set,
        bits=encoder.bits,
        modes=modes,
        radius=radius,
        pool=pool,
        exclude=exclude,
        classification_error=wrong,
        progress=progress,
    )
    return ScoredModel(
        evaluation,
        database_set,
        query_set,
        matched.classes,
        held.uris,
        asked.uris,
        database.spec,
        queries.spec,
        encoder.fingerprint,
        radius,
        None if radius is not None else pool,
        0 if exclude is None else int((exclude >= 0).sum()),
        (*held.skipped, *asked.skipped),
        (*unlabelled, *matched.warnings, *model_warnings),
    )


def encode(encoder: Encoder, source: Source, *, strict: bool, progress: bool) -> EncodedImages:
    """Encode a source with a progress bar on standard error.

    Parameters
    ----------
    encoder : Encoder
        The model.
    source : Source
        Images.
    strict : bool
        Raise on an unreadable image instead of skipping it.
    progress : bool
        Show the bar.

    Raises
    ------
    SourceError
        If no image can be read.
    ImageError
        If strict and an image cannot be read.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"encode {source.spec}", total=len(source), rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            if speed := bar.tasks[task].speed:
                bar.update(task, rate=f"{speed:,.0f} images/s")

        encoded = encode_source(encoder, source, strict=strict, progress=advance)
    if not len(encoded):
        first = f", the first: {encoded.skipped[0].reason}" if encoded.skipped else ""
        raise SourceError(f"{source.spec}: none of its {len(source)} images can be read{first}")
    return encoded


def _labelled(queries: Source, database: Source) -> tuple[Source, tuple[str, ...]]:
    """The queries that have a label, and what to say of the images that have none."""
    held, missing = queries.labelled, len(database) - len(database.labelled)
    warnings = []
    if len(held) < len(queries):
        warnings.append(
            f"{len(queries) - len(held)} of the {len(queries)} images of {queries.spec} have no "
            "label and are not used as queries"
        )
    if missing:
        warnings.append(
            f"{missing} of the {len(database)} images of {database.spec} have no label: each one "
            "found counts as wrong"
        )
    return (queries.subset(held) if len(held) else queries), tuple(warnings)


def _named(source: Source) -> Named:
    labels = source.labels if source.label_matrix is None else source.label_matrix
    return Named(source.spec, source.classes, labels)


def _own_rows(database: EncodedImages, queries: EncodedImages) -> Ids | None:
    """Each query's row in the database, -1 where it is not there; None where none is."""
    rows = {uri: row for row, uri in enumerate(database.uris)}
    own = np.array([rows.get(uri, -1) for uri in queries.uris], dtype=np.int64)
    return own if (own >= 0).any() else None
