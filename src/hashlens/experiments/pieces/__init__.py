"""The pieces of the paper that can be run again: one TOML file each."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Amounts:
    """How many images of each kind take part; None: all there are.

    Attributes
    ----------
    training, database, queries : int or None
        Images, spread evenly over the classes.
    """

    training: int | None = None
    database: int | None = None
    queries: int | None = None


@dataclass(frozen=True)
class Piece:
    """One experiment.

    Attributes
    ----------
    name, title : str
        On the command line, and in headings.
    hub : str
        Name of the data set on the hub, where no folder is given.
    size, channels : int
        Of its images.
    features : str
        What the shallow methods work on by default.
    methods : tuple of str
        In the order of the tables.
    bits : tuple of int
        Code lengths of the table of mean average precision; the first one is that of the curves.
    error_bits : tuple of int
        Code lengths whose classification error is reported.
    options : mapping of str to mapping
        Options of a shallow method, by name.
    training : mapping of str to value
        What the deep methods' training is told besides the recipe.
    amounts : Amounts
        Images that take part.
    seconds : mapping of str to float
        How long a method takes about, at the first code length, on two cores.
    """

    name: str
    title: str
    hub: str
    size: int
    channels: int
    features: str
    methods: tuple[str, ...]
    bits: tuple[int, ...]
    error_bits: tuple[int, ...]
    options: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    amounts: Amounts
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Products:
    """The experiment on a collection of any kind.

    Attributes
    ----------
    bits : int
        Length of a code.
    queries : int
        Images that ask, at most; each is left out of its own results.
    held_out : float
        Share of the images that do not train, for the accuracy.
    training : mapping of str to value
        What training is told.
    images : int or None
        Images that take part at most.
    """

    bits: int
    queries: int
    held_out: float
    training: Mapping[str, Any]
    images: int | None = None


def read_products(*, quick: bool = False) -> Products:
    """Read the experiment on a collection.

    Parameters
    ----------
    quick : bool
        The form that ends within minutes.
    """
    return Products(**_values("products", quick))


def read_piece(name: str, *, quick: bool = False) -> Piece:
    """Read a piece by name.

    Parameters
    ----------
    name : {"mnist", "cifar10"}
        Which.
    quick : bool
        The form that ends within minutes: the file's ``quick`` table wins over the rest.
    """
    values = _values(name, quick)
    return Piece(
        name=name,
        title=values["title"],
        hub=values["hub"],
        size=values["size"],
        channels=values["channels"],
        features=values["features"],
        methods=tuple(values["methods"]),
        bits=tuple(values["bits"]),
        error_bits=tuple(values["error_bits"]),
        options=values.get("options", {}),
        training=values["training"],
        amounts=Amounts(**values.get("amounts", {})),
        seconds=values["seconds"],
    )


def _values(name: str, quick: bool) -> dict[str, Any]:
    values = tomllib.loads((files(__package__) / f"{name}.toml").read_text(encoding="utf-8"))
    short = values.pop("quick")
    return values | short if quick else values
