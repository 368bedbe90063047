"""What several front ends on Ray Serve are told as ``name=value``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hashlens.distributed.sharded import DEADLINE_SECONDS
from hashlens.errors import InvalidInputError

_YES_NO = {"true": True, "false": False}


@dataclass(frozen=True)
class FrontEndOptions:
    """What ``build`` takes as ``name=value``.

    Attributes
    ----------
    index : Path
        Folder of the index in shards; every node must reach it.
    model : Path, optional
        Model directory or exported file; by default the one that the index remembers.
    front_ends : int
        How many.
    replicas : int
        Actors a shard.
    deadline : float
        Seconds that a replica has for an answer.
    require_all : bool
        Fail when a shard does not answer, rather than answer without it.
    host_names : tuple of str
        Names that requests may ask for; by default those of this machine. ``*`` is any.
    """

    index: Path
    model: Path | None = None
    front_ends: int = 2
    replicas: int = 1
    deadline: float = DEADLINE_SECONDS
    require_all: bool = False
    host_names: tuple[str, ...] = ()


def parse_options(given: Mapping[str, str]) -> FrontEndOptions:
    """Options from words.

    Raises
    ------
    InvalidInputError
        If one is unknown, missing or not what was expected.
    """
    known = {field.name for field in fields(FrontEndOptions)}
    if unknown := sorted(set(given) - known):
        raise InvalidInputError(
            f"expected options of {', '.join(sorted(known))}; got {', '.join(unknown)}"
        )
    if "index" not in given:
        raise InvalidInputError("expected index=FOLDER, the index in shards")
    read: dict[str, Callable[[str], Any]] = {
        "index": lambda text: Path(text).absolute(),
        "model": lambda text: Path(text).absolute(),
        "front_ends": int,
        "replicas": int,
        "deadline": float,
        "require_all": lambda text: _YES_NO[text.lower()],
        "host_names": lambda text: tuple(text.lower().split(",")),
    }
    values = {}
    for name, text in given.items():
        try:
            values[name] = read[name](str(text))
        except (ValueError, KeyError):
            wanted = "true or false" if name == "require_all" else "a number"
            raise InvalidInputError(f"{name}: expected {wanted}, got {text!r}") from None
    options = FrontEndOptions(**values)
    if options.front_ends < 1:
        raise InvalidInputError(f"front_ends: expected 1 or more, got {options.front_ends}")
    return options
