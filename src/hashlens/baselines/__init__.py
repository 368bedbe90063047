"""The methods that the paper compares with, one per file: ``fit``, then ``encode``.

A new method is one new file here and nothing else; see docs/guides/add-a-method.md. The name of
the file is the name of the method: ``itq_cca.py`` holds ITQ-CCA. A file is imported when its
method is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hashlens.baselines.base import HashMethod
from hashlens.errors import InvalidInputError

__all__ = ["HashMethod", "create_method", "method_names"]


def method_names() -> tuple[str, ...]:
    """Names of all methods, as in tables and figures, in the order of the alphabet."""
    files = sorted(found.name for found in iter_modules(__path__))
    return tuple(name.upper().replace("_", "-") for name in files if name != "base")


def create_method(name: str, bits: int, *, seed: int = 0, **options: Any) -> HashMethod:
    """A method by its name, not fitted yet; ``options`` are arguments of its class."""
    if name not in method_names():
        raise InvalidInputError(
            f"method: expected one of {', '.join(method_names())}, got {name!r}"
        )
    module = import_module(f"{__name__}.{name.lower().replace('-', '_')}")
    (kind,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, HashMethod)
        and value.__module__ == module.__name__
    )
    method: HashMethod = kind(bits, seed=seed, **options)
    return method
