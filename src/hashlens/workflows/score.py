"""``evaluate``: score a model on images, and write the page that shows the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens import __version__
from hashlens.codes.packing import unpack_bits
from hashlens.data.opening import can_open, load_image, open_source
from hashlens.data.source import Source
from hashlens.errors import InvalidInputError, SourceError, few_of
from hashlens.evaluation.metrics import RECALL_LEVELS, LabelArray, shares_label
from hashlens.evaluation.scoring import Evaluation, score_searcher, top_class_error
from hashlens.index.ranking import ArraySearcher
from hashlens.models.encoder import Encoder, encode_source
from hashlens.report.page import Cell, Page, Table
from hashlens.report.plot import Curve, plot_curves
from hashlens.report.progress import ProgressBar
from hashlens.report.sheet import Neighbour, SheetQuery, picture_sheet
from hashlens.types import (
    DEFAULT_POOL,
    POOL_PER_RESULT,
    EncodedImages,
    Mode,
    Searcher,
    SearchOptions,
    Skipped,
)

MODE_NAMES: dict[Mode, str] = {"bcs": "BCS", "acs": "ACS", "hds": "HDS", "es": "ES"}
CLEARLY_BETTER = 0.01  # in precision at 10
SMALL = 120  # pixels that a sheet draws of a picture

MakeSearcher = Callable[[Source, EncodedImages], Searcher]
"""Takes the database's source and its encoded images; ids of the searcher are their rows."""


@dataclass(frozen=True)
class ScoredModel:
    """What ``evaluate`` found; ``print`` shows its table."""

    evaluation: Evaluation  # the scores
    # what was searched, and with what; labels are places in ``classes``
    database: EncodedImages = field(repr=False)
    queries: EncodedImages = field(repr=False)
    classes: tuple[str, ...]  # class names
    database_spec: str  # the sources
    query_spec: str
    fingerprint: str  # fingerprint of the model
    # hamming radius, or size of the pool, of ``hds`` and ``acs``; both None: the pool depends on k
    radius: int | None
    pool: int | None
    left_out: int  # queries that are themselves in the database, left out of their own results
    warnings: tuple[str, ...]  # what a person should know
    stored_mode: Mode | None = None  # the mode that the model names as its best

    def __str__(self) -> str:
        advice = f"\n{self.advice}" if self.advice else ""
        return f"{summary(self)}\n{score_table(self.evaluation).text()}{advice}"

    @property
    def better_mode(self) -> Mode | None:
        """The best mode, if its precision at 10 is clearly above that of the model's own mode."""
        precision = {mode: found.precision[10] for mode, found in self.evaluation.modes.items()}
        if self.stored_mode not in precision:
            return None
        best = max(precision, key=precision.__getitem__)
        return best if precision[best] > precision[self.stored_mode] + CLEARLY_BETTER else None

    @property
    def advice(self) -> str:
        """One sentence if another mode is clearly better than the model's own; else empty."""
        best, stored = self.better_mode, self.stored_mode
        if best is None or stored is None:
            return ""
        there, here = (self.evaluation.modes[mode].precision[10] for mode in (best, stored))
        return (
            f"{MODE_NAMES[best]} is clearly better here than {MODE_NAMES[stored]}, the mode stored "
            f"with the model (precision@10 {there:.4f} against {here:.4f}): use --mode {best}"
        )

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that could not be read."""
        return (*self.database.skipped, *self.queries.skipped)

    def to_dict(self) -> dict[str, Any]:
        """The scores and what they were made of, as ``hashlens evaluate --json`` prints them."""
        return {
            **self.evaluation.to_dict(),
            "database": self.database_spec,
            "queries": self.query_spec,
            "fingerprint": self.fingerprint,
            "hashlens": __version__,
            "radius": self.radius,
            "pool": self.pool,
            "stored_mode": self.stored_mode,
            "better_mode": self.better_mode,
            "queries_left_out_of_their_own_results": self.left_out,
            "skipped": [{"image": image.name, "reason": image.reason} for image in self.skipped],
            "warnings": list(self.warnings),
        }


def evaluate(
    model: str | Path | Encoder,
    database: str | Path | Source,
    queries: str | Path | Source,
    *,
    radius: int | None = None,
    pool: int | None = None,
    modes: Sequence[Mode] | None = None,
    map_at: Sequence[int] = (),
    strict: bool = False,
    progress: bool = False,
    make_searcher: MakeSearcher | None = None,
) -> ScoredModel:
    """Score a model: search a database of images with labelled queries.

    The scores and the defaults are those of ``hashlens evaluate``. Queries that are in the
    database as well (the same URI) are left out of their own results.

    Parameters
    ----------
    model : str, Path or Encoder
        A model's folder, an exported ``.onnx`` file, or a loaded encoder.
    database, queries : str, Path or Source
        Images to search, and labelled images to search with: a source, or a name for
        ``open_source``.
    radius : int, optional
        Hamming radius of ``hds``, ``acs`` and ``bcs``.
    pool : int, optional
        Images in the pool of ``hds`` and ``acs``, where no radius is given; by default as many as a
        search for the same number of results takes.
    modes : sequence of {"bcs", "acs", "hds", "es"}, optional
        Ways to search that are scored; by default all, ``acs`` if the encoder gives latent values.
    map_at : sequence of int
        Further cutoffs of mean average precision, next to 1,000 and all.
    strict : bool
        Raise on an unreadable image instead of skipping it.
    progress : bool
        Show progress on standard error.
    make_searcher : callable, optional
        Makes what is scored from the database's source and its encoded images; by default they
        are searched in memory.

    Returns
    -------
    ScoredModel
        ``to_dict`` gives all scores by name; ``evaluation.modes["bcs"]`` those of one way to
        search.

    Raises
    ------
    InvalidInputError
        If both radius and pool are given, or an argument is out of range.
    ModelError
        If the model cannot be loaded.
    SourceError
        If a source cannot be opened, none of its images can be read, or the two have no class in
        common.
    ImageError
        If strict and an image cannot be read.

    Examples
    --------
    >>> scored = evaluate("model/", "photos#train", "photos#test")  # doctest: +SKIP
    >>> scored.to_dict()["bcs"]["map@1000"]  # doctest: +SKIP
    0.9957
    """
    if radius is not None and pool is not None:
        raise InvalidInputError("give radius or pool, not both: the pool is all within a radius")
    for mode in modes or MODE_NAMES:  # checked before hours of encoding
        SearchOptions(mode=mode, radius=None if mode == "es" else radius, pool=pool)
    for k in map_at:
        SearchOptions(k)
    encoder = model if isinstance(model, Encoder) else Encoder.load(model)
    database, queries = open_source(database), open_source(queries)
    notes = [f"{given.spec}: {note}" for given in (database, queries) for note in given.notes]
    queries, unlabelled = _labelled(queries, database)
    matched = match_classes(database, queries)
    truth, model_warnings = match_model(queries, encoder.classes)
    base = encode(encoder, database, strict=strict, progress=progress)
    found = encode(encoder, queries, strict=strict, progress=progress)
    # Each query's row in the database, -1 where it is not there; None where no query is.
    row_of = {uri: row for row, uri in enumerate(base.uris)}
    own = np.array([row_of.get(uri, -1) for uri in found.uris], dtype=np.int64)
    exclude = own if (own >= 0).any() else None
    if modes is None:
        modes = [mode for mode in MODE_NAMES if mode != "acs" or found.latent is not None]
    error = None
    if truth is not None and found.scores is not None:
        error = top_class_error(found.scores, truth[found.positions])
    make = make_searcher or (lambda source, held: ArraySearcher(held.codes, held.features))
    searcher = make(database, base)
    base = replace(base, labels=matched.database[base.positions])
    found = replace(found, labels=matched.queries[found.positions])
    evaluation = score_searcher(
        searcher,
        base,
        found,
        bits=encoder.bits,
        modes=modes,
        map_at=map_at,
        radius=radius,
        pool=pool,
        exclude=exclude,
        classification_error=error,
        progress=progress,
    )
    return ScoredModel(
        evaluation,
        base,
        found,
        matched.classes,
        database.spec,
        queries.spec,
        encoder.fingerprint,
        radius,
        pool,
        0 if exclude is None else int((exclude >= 0).sum()),
        (*notes, *unlabelled, *matched.warnings, *model_warnings),
        encoder.mode,
    )


def encode(encoder: Encoder, source: Source, *, strict: bool, progress: bool) -> EncodedImages:
    """Encode a source with a progress bar; at least one image must be readable."""
    what = f"encode {source.spec}"
    with ProgressBar(what, len(source), unit="images", hidden=not progress) as bar:
        encoded = encode_source(encoder, source, strict=strict, progress=bar)
    if not len(encoded):
        first = f", the first: {encoded.skipped[0].reason}" if encoded.skipped else ""
        raise SourceError(f"{source.spec}: none of its {len(source)} images can be read{first}")
    return encoded


def _labelled(queries: Source, database: Source) -> tuple[Source, tuple[str, ...]]:
    """The queries that have a label, and warnings about images that have none."""
    labelled, missing = queries.labelled, len(database) - len(database.labelled)
    warnings = []
    if len(labelled) < len(queries):
        warnings.append(
            f"{len(queries) - len(labelled)} of the {len(queries)} images of {queries.spec} have "
            "no label and are not used as queries"
        )
    if missing:
        warnings.append(
            f"{missing} of the {len(database)} images of {database.spec} have no label: each one "
            "found counts as wrong"
        )
    return (queries.subset(labelled) if len(labelled) else queries), tuple(warnings)


def used_classes(source: Source) -> set[str]:
    """Names of classes that at least one image has."""
    labels = source.targets
    held = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else labels
    return {source.classes[label] for label in np.unique(held).tolist() if label >= 0}


def renumbered(source: Source, classes: Sequence[str], *, many: bool = False) -> LabelArray:
    """A source's labels as places in ``classes``, -1 where not there; (n, classes) if many.

    Of a source with several labels per image, ``classes`` hold all names.
    """
    place = {name: number for number, name in enumerate(classes)}
    numbers = np.array([place.get(name, -1) for name in source.classes] + [-1], dtype=np.int64)
    labels: NDArray[np.int64] = numbers[source.labels]
    if source.label_matrix is not None:
        images, held = np.nonzero(source.label_matrix)
        held = numbers[held]
    elif many:
        images, held = np.flatnonzero(labels >= 0), labels[labels >= 0]
    else:
        return labels
    matrix = np.zeros((len(source), len(classes)), dtype=np.bool_)
    matrix[images, held] = True
    return matrix


class Matched(NamedTuple):
    """Labels of database and queries under one numbering, and what a person should know."""

    classes: tuple[str, ...]
    database: LabelArray
    queries: LabelArray
    warnings: tuple[str, ...]


def match_classes(database: Source, queries: Source) -> Matched:
    """Number the classes of both as the database does; those of queries alone come after.

    If one source has many labels per image, both have afterwards.
    """
    here, asked = used_classes(database), used_classes(queries)
    if not here & asked:
        raise SourceError(
            f"{queries.spec} and {database.spec} have no class in common ({_few(asked)}; "
            f"{_few(here)}): nothing could be found; give sources with the same class names"
        )
    warnings = []
    if missing := asked - here:
        warnings.append(
            f"{len(missing)} of the {len(asked)} classes of {queries.spec} are not in "
            f"{database.spec} ({_few(missing)}): their queries find nothing and score 0"
        )
    classes = (*database.classes, *(c for c in queries.classes if c not in set(database.classes)))
    many = database.is_multi_label or queries.is_multi_label
    return Matched(
        classes,
        renumbered(database, classes, many=many),
        renumbered(queries, classes, many=many),
        tuple(warnings),
    )


def match_model(
    queries: Source, classes: Sequence[str]
) -> tuple[LabelArray | None, tuple[str, ...]]:
    """Labels of queries under a model's numbering, for its classification error."""
    if not classes:
        return None, ()
    asked = used_classes(queries)
    unknown = asked - set(classes)
    if unknown == asked:
        return None, (
            f"the model knows none of the classes of {queries.spec} ({_few(asked)}): no "
            "classification error",
        )
    labels = renumbered(queries, (*classes, *sorted(unknown)))
    labels = labels if labels.ndim == 2 else np.minimum(labels, len(classes))
    if not unknown:
        return labels, ()
    return labels, (
        f"{len(unknown)} of the {len(asked)} classes of {queries.spec} are unknown to the model "
        f"({_few(unknown)}): it classifies all their images wrongly",
    )


def _few(names: set[str]) -> str:
    return few_of(sorted(names)) or "no labels"


_SHOWN, _DRAWN, _WRONG = 8, 5, 3  # results of a query; queries of a sheet

_WAYS = (
    "BCS: binary codes only. ACS: binary codes first, then the query's latent values against the "
    "stored bits within the pool. HDS: binary codes first, then features within the pool. ES: "
    "exhaustive search over features."
)
_TIES = (
    "mAP@1000: average precision over the first 1,000 results, divided by the number of relevant "
    "ones among them; images at the same distance are in the order of their ids. 'Over ties' is "
    "its expectation over all orders of such images. mAP@all: the same over the whole database; "
    "for ACS and HDS the images outside the pool follow in Hamming order. Precision at k is "
    "divided by k, so a class of fewer than k images cannot reach 1. Time: median of single "
    "queries for ten results, without encoding."
)


def summary(scored: ScoredModel) -> str:
    """One line: what was searched with what, and the classification error."""
    found = scored.evaluation
    error = found.classification_error
    wrong = "" if error is None else f" Classification error {100 * error:.2f} %."
    return (
        f"{found.bits}-bit codes; {found.n_database:,} images of {scored.database_spec} searched "
        f"with {found.n_queries:,} queries of {scored.query_spec}.{wrong}"
    )


def score_table(evaluation: Evaluation) -> Table:
    """One row per way to search."""
    ks = (1, 10, 100, 1000)
    first = next(iter(evaluation.modes.values()))
    further = [name for name in first.more if name.startswith(("map@", "ndcg@"))]
    shown = [name.replace("map", "mAP").replace("ndcg", "nDCG") for name in further]
    headers = ["", "mAP@1000", "over ties", *shown, *(f"precision@{k}" for k in ks), "ms per query"]
    rows: list[list[Cell]] = []
    for mode, scores in evaluation.modes.items():
        means = (scores.mean_average_precision, scores.expected_mean_average_precision)
        rows.append([MODE_NAMES[mode], *means, *(scores.more[name] for name in further)])
        rows[-1] += [*(scores.precision[k] for k in ks), f"{scores.ms_per_query:.3f}"]
    return Table(headers, rows)


def write_report(
    scored: ScoredModel, out: Path, *, title: str = "Hashlens evaluation", commands: str = ""
) -> Path:
    """Write results.json, report.html, report.md, the curves and the picture sheet."""
    page = Page(out, title, summary(scored))
    page.write_json(scored.to_dict(), "results")
    for warning in scored.warnings:
        page.paragraph(f"Note: {warning}.")
    if scored.skipped:
        names = ", ".join(image.name for image in scored.skipped[:5])
        page.paragraph(
            f"Note: {len(scored.skipped)} images could not be read and were skipped: {names}."
        )
    page.heading("Scores")
    page.table(score_table(scored.evaluation), f"{_WAYS} {_pool(scored)} {_TIES}")
    if scored.advice:
        page.paragraph(f"{scored.advice}.")
    page.heading("Precision at k")
    modes = {MODE_NAMES[mode]: scores for mode, scores in scored.evaluation.modes.items()}
    curves = {name: Curve.through(scores.precision) for name, scores in modes.items()}
    page.figure(
        plot_curves(curves, xlabel="k", ylabel="precision at k"),
        "precision_at_k",
        "Precision at k of each way to search",
    )
    page.heading("Precision and recall")
    curves = {
        name: Curve(RECALL_LEVELS, scores.precision_at_recall.tolist())
        for name, scores in modes.items()
    }
    page.figure(
        plot_curves(curves, xlabel="recall", ylabel="precision"),
        "precision_recall",
        "Precision by recall of each way to search",
        "Mean over queries of the precision at the rank where this share of a query's relevant "
        "images is reached.",
    )
    rows: list[list[Cell]] = [
        [f"{level:.2f}", *(float(found.precision_at_recall[row]) for found in modes.values())]
        for row, level in enumerate(RECALL_LEVELS)
    ]
    page.table(Table(["recall", *modes], rows))
    queries, caption = sheet_queries(scored)
    if any(can_open(query.uri, size_hint=SMALL) for query in queries):  # vectors may have none
        page.heading("Nearest pictures")
        sheet = picture_sheet(queries, load_small)
        page.picture(sheet, "sheet", "Queries with their nearest pictures", caption)
    if commands:
        page.heading("Next")
        page.commands(commands)
    return page.write()


def sheet_queries(scored: ScoredModel) -> tuple[list[SheetQuery], str]:
    """Queries for a sheet: some drawn at random, and some that the codes answer wrongly."""
    order = np.random.default_rng(0).permutation(len(scored.queries)).tolist()
    chosen, others = order[:_DRAWN], order[_DRAWN:]
    first = next(iter(scored.evaluation.modes))
    wrong = [row for row in others if not all(_right(scored, first, row)[:_SHOWN])][:_WRONG]
    caption = f"{len(chosen)} queries drawn at random"
    if wrong:
        caption += f", then {len(wrong)} of those that {MODE_NAMES[first]} answers wrongly in part"
    caption += (
        ". Blue frame and tick: a class of the query; orange frame and cross: another class. "
        "Under each picture: its class, and its distance to the query (bits that differ for BCS, "
        "asymmetric for ACS, Euclidean for HDS and ES). The squares are the bits of the query's "
        "code, filled where 1."
    )
    return [_sheet_query(scored, row) for row in (*chosen, *wrong)], caption


def load_small(uri: str) -> Image.Image:
    """Open a picture for a sheet, at about the size that it is drawn in."""
    return load_image(uri, size_hint=SMALL)


def _sheet_query(scored: ScoredModel, row: int) -> SheetQuery:
    nearest = {}
    for mode, scores in scored.evaluation.modes.items():
        nearest[MODE_NAMES[mode]] = [
            Neighbour(
                scored.database.uris[found],
                _label(scored, scored.database.labels[found]),
                f"{distance:.0f} bits" if mode == "bcs" else f"{distance:.3g}",
                right,
            )
            for found, distance, right in zip(
                scores.nearest[row, :_SHOWN].tolist(),
                scores.distances[row, :_SHOWN].tolist(),
                _right(scored, mode, row),
                strict=False,
            )
            if found >= 0
        ]
    return SheetQuery(
        scored.queries.uris[row],
        _label(scored, scored.queries.labels[row]),
        nearest,
        unpack_bits(scored.queries.codes[row : row + 1], scored.evaluation.bits)[0],
    )


def _right(scored: ScoredModel, mode: Mode, row: int) -> list[bool]:
    found = scored.evaluation.modes[mode].nearest[row]
    found = found[found >= 0]
    asked = scored.queries.labels[row : row + 1]
    return [bool(right) for right in shares_label(asked, scored.database.labels[found])[0]]


def _label(scored: ScoredModel, label: LabelArray) -> str:
    if label.ndim:
        return ", ".join(scored.classes[place] for place in np.flatnonzero(label))
    return scored.classes[int(label)] if label >= 0 else "no label"


def _pool(scored: ScoredModel) -> str:
    if scored.radius is not None:
        return f"Pool of ACS and HDS, and limit of BCS: Hamming radius {scored.radius}."
    smallest = scored.pool or DEFAULT_POOL
    if smallest >= len(scored.database):
        return "Pool of ACS and HDS: all images, so that HDS is ES here."
    if scored.pool is not None:
        return f"Pool of ACS and HDS: the {scored.pool:,} nearest codes."
    return (
        f"Pool of ACS and HDS: as in a search for k results, the {DEFAULT_POOL} nearest codes, "
        f"from k = {DEFAULT_POOL // POOL_PER_RESULT} on {POOL_PER_RESULT} k of them; for mAP@1000 "
        "as for k = 1,000."
    )
