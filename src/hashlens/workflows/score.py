"""What ``evaluate`` and ``demo`` show and write: table, curves, picture sheet, page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlens import __version__
from hashlens.data.image import load_image
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.evaluation.metrics import CUTOFF, PRECISION_AT, Labels, shares_label
from hashlens.evaluation.results import Evaluation
from hashlens.evaluation.scoring import evaluate, top_class_error
from hashlens.files import replace_file
from hashlens.index.ranking import ArraySearcher
from hashlens.models.encoder import Encoder, encode_source
from hashlens.report.page import Report
from hashlens.report.plot import Curve, plot_curves, save_figure
from hashlens.report.progress import ProgressBar
from hashlens.report.sheet import Neighbour, SheetQuery, code_bits, picture_sheet
from hashlens.report.table import Cell, Table
from hashlens.types import EncodedImages, Ids, Mode, Searcher, Skipped, default_pool


class Named(NamedTuple):
    """Labels of a source with the names that they stand for.

    Attributes
    ----------
    name : str
        The source, for messages.
    classes : sequence of str
        Class names.
    labels : ndarray of shape (n,), int64, or (n, classes), bool
        Places in ``classes``, -1 where unlabelled; or a row of classes.
    """

    name: str
    classes: Sequence[str]
    labels: Labels


class Matched(NamedTuple):
    """Labels of database and queries under one numbering, and what a person should know."""

    classes: tuple[str, ...]
    database: Labels
    queries: Labels
    warnings: tuple[str, ...]


def match_classes(database: Named, queries: Named) -> Matched:
    """Number the classes of both as the database does; those of queries alone come after.

    Where one source has many labels an image, so have both afterwards.
    """
    here, asked = _used(database), _used(queries)
    if not here & asked:
        raise SourceError(
            f"{queries.name} and {database.name} have no class in common ({_few(asked)}; "
            f"{_few(here)}): nothing could be found; give sources with the same class names"
        )
    warnings = []
    if missing := asked - here:
        warnings.append(
            f"{len(missing)} of the {len(asked)} classes of {queries.name} are not in "
            f"{database.name} ({_few(missing)}): their queries find nothing and score 0"
        )
    classes = (*database.classes, *(c for c in queries.classes if c not in set(database.classes)))
    many = database.labels.ndim == 2 or queries.labels.ndim == 2
    return Matched(
        classes,
        renumber(database, classes, many=many),
        renumber(queries, classes, many=many),
        tuple(warnings),
    )


def match_model(queries: Named, classes: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels of queries under a model's numbering, for its classification error."""
    if not classes:
        return None, ()
    asked = _used(queries)
    unknown = asked - set(classes)
    if unknown == asked:
        return None, (
            f"the model knows none of the classes of {queries.name} ({_few(asked)}): no "
            "classification error",
        )
    warnings: tuple[str, ...] = ()
    if unknown:
        warnings = (
            f"{len(unknown)} of the {len(asked)} classes of {queries.name} are unknown to the "
            f"model ({_few(unknown)}): it classifies all their images wrongly",
        )
    extended = (*classes, *sorted(unknown))
    labels = renumber(queries, extended, many=queries.labels.ndim == 2)
    return (labels if labels.ndim == 2 else np.minimum(labels, len(classes))), warnings


def renumber(source: Named, classes: Sequence[str], *, many: bool) -> Labels:
    """Labels as places in other ``classes``, which hold all of the source's; (n, c) if many."""
    place = {name: number for number, name in enumerate(classes)}
    if source.labels.ndim == 2:
        matrix = np.zeros((len(source.labels), len(classes)), dtype=np.bool_)
        for column in np.flatnonzero(source.labels.any(axis=0)).tolist():
            matrix[:, place[source.classes[column]]] = source.labels[:, column]
        return matrix
    numbers = np.array([place.get(name, -1) for name in source.classes] + [-1], dtype=np.int64)
    labels: NDArray[np.int64] = numbers[source.labels]
    if not many:
        return labels
    matrix = np.zeros((len(labels), len(classes)), dtype=np.bool_)
    held = np.flatnonzero(labels >= 0)
    matrix[held, labels[held]] = True
    return matrix


def _used(source: Named) -> set[str]:
    """Names that at least one image has."""
    if source.labels.ndim == 2:
        used = np.flatnonzero(source.labels.any(axis=0)).tolist()
        return {source.classes[column] for column in used}
    return {source.classes[label] for label in np.unique(source.labels).tolist() if label >= 0}


def _few(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (", …" if len(names) > 5 else "") or "no labels"


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
    database, queries : EncodedImages
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
    database: EncodedImages
    queries: EncodedImages
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
    database_set = replace(held, labels=matched.database[held.positions])
    query_set = replace(asked, labels=matched.queries[asked.positions])
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
    """Encode a source with a progress bar on standard error."""
    what = f"encode {source.spec}"
    with ProgressBar(what, len(source), unit="images", hidden=not progress) as bar:
        encoded = encode_source(encoder, source, strict=strict, progress=bar)
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


MODE_NAMES: dict[Mode, str] = {"bcs": "BCS", "hds": "HDS", "es": "ES"}
_SHOWN = 8

WAYS = (
    "BCS: binary codes only. HDS: binary codes first, then features within the pool. "
    "ES: exhaustive search over features."
)
TIES = (
    "mAP@1000: average precision over the first 1,000 results, divided by the relevant ones "
    "found there; images at the same distance stand in the order of ids. 'Over ties' is its "
    "expectation over all orders of them. Precision at k is divided by k, so a class of fewer "
    "than k images cannot reach 1. Time: median of single queries for ten results, encoding not "
    "included."
)


def score_table(evaluation: Evaluation, ks: Sequence[int] = (1, 10, 100, 1000)) -> Table:
    """One row a way to search."""
    headers = ["", "mAP@1000", "over ties", *(f"precision@{k}" for k in ks), "ms per query"]
    rows: list[list[Cell]] = [
        [
            MODE_NAMES[mode],
            scores.mean_average_precision,
            scores.expected_mean_average_precision,
            *(float(scores.precision[k - 1]) for k in ks),
            f"{scores.ms_per_query:.3f}",
        ]
        for mode, scores in evaluation.modes.items()
    ]
    return Table(headers, rows)


def summary(scored: ScoredModel) -> str:
    """One line: what was searched with what, and the classification error."""
    found = scored.evaluation
    error = found.classification_error
    wrong = "" if error is None else f" Classification error {100 * error:.2f} %."
    return (
        f"{found.bits}-bit codes; {found.n_database:,} images of {scored.database_spec} searched "
        f"with {found.n_queries:,} queries of {scored.query_spec}.{wrong}"
    )


def write_report(
    scored: ScoredModel, out: Path, *, title: str = "Hashlens evaluation", commands: str = ""
) -> Path:
    """Write results.json, report.html, report.md, the curves and the picture sheet."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(scored.to_dict(), indent=2, ensure_ascii=False)
    replace_file(out / "results.json", text + "\n")
    curves = save_figure(plot_curves(_curves(scored.evaluation)), out, "precision_at_k")
    queries, caption = sheet_queries(scored)
    sheet = picture_sheet(queries, load)
    replace_file(out / "sheet.png", partial(sheet.save, optimize=True))
    report = Report(title, summary(scored))
    for warning in (*scored.warnings, *_skipped(scored)):
        report.paragraph(f"Note: {warning}.")
    report.heading("Scores")
    report.table(score_table(scored.evaluation), f"{WAYS} {_pool(scored)} {TIES}")
    report.heading("Precision at k")
    report.picture(curves, "Precision at k of each way to search")
    report.heading("Nearest pictures")
    report.picture(sheet, "Queries with their nearest pictures", caption, file="sheet.png")
    if commands:
        report.heading("Next")
        report.commands(commands)
    return report.write(out)


def sheet_queries(
    scored: ScoredModel, *, drawn: int = 5, failed: int = 3, seed: int = 0
) -> tuple[list[SheetQuery], str]:
    """Queries for a sheet: some drawn at random, and some that the codes answer wrongly."""
    order = np.random.default_rng(seed).permutation(len(scored.queries))
    chosen = order[:drawn].tolist()
    first = next(iter(scored.evaluation.modes))
    wrong = [row for row in order[drawn:].tolist() if not all(_right(scored, first, row)[:_SHOWN])][
        :failed
    ]
    caption = f"{len(chosen)} queries drawn at random"
    if wrong:
        caption += f", then {len(wrong)} of those that {MODE_NAMES[first]} answers wrongly in part"
    caption += (
        ". Blue frame and tick: a class of the query; orange frame and cross: another class. "
        "Under each picture its class and its distance to the query: bits that differ for BCS, "
        "Euclidean for HDS and ES. The squares are the bits of the query's code, filled where 1."
    )
    return [_sheet_query(scored, row) for row in (*chosen, *wrong)], caption


def load(uri: str) -> Image.Image:
    """Open a picture for a sheet, at a size near the one it is drawn in."""
    return load_image(uri, size_hint=120)


def _sheet_query(scored: ScoredModel, row: int) -> SheetQuery:
    nearest = {}
    for mode, scores in scored.evaluation.modes.items():
        right = _right(scored, mode, row)
        nearest[MODE_NAMES[mode]] = [
            Neighbour(
                scored.database_uris[found],
                _label(scored, scored.database.labels[found]),
                f"{distance:.0f} bits" if mode == "bcs" else f"{distance:.3g}",
                correct,
            )
            for found, distance, correct in zip(
                scores.nearest[row, :_SHOWN].tolist(),
                scores.distances[row, :_SHOWN].tolist(),
                right,
                strict=False,
            )
            if found >= 0
        ]
    return SheetQuery(
        scored.query_uris[row],
        _label(scored, scored.queries.labels[row]),
        nearest,
        code_bits(scored.queries.codes, row, scored.evaluation.bits),
    )


def _right(scored: ScoredModel, mode: Mode, row: int) -> list[bool]:
    found = scored.evaluation.modes[mode].nearest[row]
    found = found[found >= 0]
    asked = scored.queries.labels[row : row + 1]
    return [bool(right) for right in shares_label(asked, scored.database.labels[found])[0]]


def _label(scored: ScoredModel, label: Labels) -> str:
    if label.ndim:
        return ", ".join(scored.classes[place] for place in np.flatnonzero(label))
    return scored.classes[int(label)] if label >= 0 else "no label"


def _curves(evaluation: Evaluation) -> dict[str, Curve]:
    return {
        MODE_NAMES[mode]: Curve(
            PRECISION_AT, [float(scores.precision[k - 1]) for k in PRECISION_AT]
        )
        for mode, scores in evaluation.modes.items()
    }


def _pool(scored: ScoredModel) -> str:
    if scored.radius is not None:
        return f"Pool of HDS, and limit of BCS: Hamming radius {scored.radius}."
    if scored.pool is None or scored.pool >= len(scored.database):
        return "Pool of HDS: all images, so that HDS is ES here."
    return f"Pool of HDS: the {scored.pool:,} nearest codes."


def _skipped(scored: ScoredModel) -> list[str]:
    if not scored.skipped:
        return []
    names = ", ".join(image.name for image in scored.skipped[:5])
    return [f"{len(scored.skipped)} images could not be read and were skipped: {names}"]
