"""Errors that Hashlens raises on purpose.

Each message says what was expected, what came, and what to do next, in one line: the command
line prints it as it is, without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def system_reason(error: OSError) -> str:
    """What the system says of a failure, such as ``permission denied``."""
    return error.strerror.lower() if error.strerror else str(error)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def few_of(names: Iterable[object]) -> str:
    """The first five of some names, and how many more there are."""
    words = [str(name) for name in names]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


class HashlensError(Exception):
    """Base of every error that Hashlens raises on purpose."""


class InvalidInputError(HashlensError, ValueError):
    """An argument or an array has the wrong shape, type or range."""


class SourceError(HashlensError):
    """Images or labels could not be found or do not fit the task."""


class ImageError(SourceError):
    """One image could not be read; the message names it."""

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


class ModelError(HashlensError):
    """A model's files are missing, cut, foreign, or do not fit what is asked of them."""


@contextmanager
def writing_model(what: str, advice: str = "") -> Iterator[None]:
    """Raise ``ModelError`` where the system refuses what the block writes."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{what} could not be written ({system_reason(error)}){advice}") from error


class IndexStoreError(HashlensError):
    """An index on disk is missing, damaged, locked, of another version, or of another model."""


class TimeLimitError(IndexStoreError):
    """A search was stopped because it took too long, or because nobody waits for it any more."""


class MissingExtraError(HashlensError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'hashlens[{extra}]'")


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Raise ``MissingExtraError`` where a package that the block imports is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(what, extra) from error
