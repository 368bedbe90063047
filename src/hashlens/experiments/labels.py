"""Brings the classes of a database, of queries and of a model under one numbering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import SourceError
from hashlens.evaluation.relevance import Labels


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

    Parameters
    ----------
    database, queries : Named
        Labels with their names.

    Returns
    -------
    Matched

    Raises
    ------
    SourceError
        If they have no class in common.
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
    """Labels of queries under a model's numbering, for its classification error.

    Parameters
    ----------
    queries : Named
        Labels with their names.
    classes : sequence of str
        The model's classes; none without a classifier.

    Returns
    -------
    labels : ndarray, or None
        A class that the model does not know has the number ``len(classes)``, which no answer of
        the model equals. None where it knows none of them, or has no classifier.
    warnings : tuple of str
    """
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
