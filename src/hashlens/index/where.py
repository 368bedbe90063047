"""``where``: conditions on label and metadata as SQL that carries every value as a parameter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hashlens.errors import InvalidInputError
from hashlens.files import compared
from hashlens.index.rows import load_text, store_text

_COMPARISONS = (">=", "<=", ">", "<")
# Keys that read the same in JSON as in a JSON path; others are looked up by a Python function.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_ .:/-]{1,200}")

METADATA_FUNCTION = "hashlens_metadata"
LABEL_FUNCTION = "hashlens_label"


def metadata_value(metadata: str | None, key: str | bytes) -> Any:
    """SQL function: one value of a metadata text, words as they are compared.

    A list or mapping comes as JSON text.
    """
    values, name = json.loads(metadata) if metadata else {}, load_text(key) or ""
    value = values.get(name)
    if value is None and not name.isascii():
        value = next((values[own] for own in values if compared(own) == compared(name)), None)
    if isinstance(value, str):
        value = compared(value)
    return json.dumps(value) if isinstance(value, dict | list) else _bindable(value)


def label_value(label: str | bytes | None) -> str | bytes | None:
    """SQL function: a label as it is compared."""
    return store_text(compared(load_text(label) or "")) if label is not None else None


def compile_where(where: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    """Conditions as SQL, and its parameters."""
    parts: list[str] = []
    parameters: list[Any] = []
    for key, wanted in (where or {}).items():
        if not isinstance(key, str):
            raise InvalidInputError(f"where: expected text as keys, got {key!r}")
        sql, values = _condition(key, wanted)
        parts.append(f"({sql})")
        parameters += values
    return " AND ".join(parts), parameters


def _condition(key: str, wanted: Any) -> tuple[str, list[Any]]:
    column, own = _column(key)
    if hasattr(wanted, "tolist"):  # NumPy's arrays and scalars
        wanted = wanted.tolist()
    if isinstance(wanted, Mapping):
        unknown = [sign for sign in wanted if sign not in _COMPARISONS]
        if unknown or not wanted:
            raise InvalidInputError(
                f"where: {key!r}: expected {', '.join(_COMPARISONS)}, got {list(wanted)}"
            )
        return _comparisons(key, column, own, wanted)
    if isinstance(wanted, Sequence | set | frozenset) and not isinstance(wanted, str | bytes):
        return _among(key, column, own, list(wanted))
    return _among(key, column, own, [wanted])


def _column(key: str) -> tuple[str, list[Any]]:
    if key == "label":
        return "label", []
    if _PLAIN_KEY.fullmatch(key):
        return "json_extract(metadata, ?)", [f'$."{key}"']
    return f"{METADATA_FUNCTION}(metadata, ?)", [store_text(key)]


def _among(key: str, column: str, own: list[Any], wanted: list[Any]) -> tuple[str, list[Any]]:
    """One of some values: the column is computed once for all that SQLite compares alike."""
    if key == "label":  # SQLite would take true for the label 1
        wanted = [value for value in wanted if not isinstance(value, bool)]
    values = [_checked(key, value) for value in wanted if value is not None]
    if key == "label":
        plain = [value for value in values if not isinstance(value, str) or value.isascii()]
        function, exact_own = f"{LABEL_FUNCTION}(label)", []
    else:
        # SQLite's JSON functions end text at the first NUL; where one is about, Python compares.
        plain = [
            value
            for value in values
            if not isinstance(value, bytes | str)
            or (isinstance(value, str) and value.isascii() and "\0" not in value)
        ]
        function, exact_own = f"{METADATA_FUNCTION}(metadata, ?)", [store_text(key)]
    exact = [value for value in values if value not in plain]
    words = [value for value in plain if isinstance(value, str)]
    parts: list[str] = []
    parameters: list[Any] = []
    if len(values) < len(wanted):
        parts.append(f"{column} IS NULL")
        parameters += own
    if plain:
        sql = f"{column} IN {_marks(plain)}"
        parameters += [*own, *plain]
        if words and key != "label":
            sql += (
                " AND (instr(metadata, '\\u0000') = 0 OR typeof("
                f"{column}) != 'text' OR {function} IN {_marks(words)})"
            )
            parameters += [*own, *exact_own, *words]
        parts.append(f"({sql})")
    if exact:
        parts.append(f"{function} IN {_marks(exact)}")
        parameters += [*exact_own, *exact]
    return " OR ".join(parts) or "0", parameters


def _marks(values: list[Any]) -> str:
    return f"({', '.join('?' * len(values))})"


def _comparisons(
    key: str, column: str, own: list[Any], wanted: Mapping[str, Any]
) -> tuple[str, list[Any]]:
    parts, parameters = [], []
    for sign in _COMPARISONS:
        if sign in wanted:
            value = _checked(key, wanted[sign])
            # SQLite orders all numbers before all text; only values of the same kind compare.
            kind = "('text', 'blob')" if isinstance(value, str | bytes) else "('integer', 'real')"
            parts.append(f"(typeof({column}) IN {kind} AND {column} {sign} ?)")
            parameters += [*own, *own, value]
    return " AND ".join(parts), parameters


def _checked(key: str, value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy's scalars
        value = value.item()
    if not isinstance(value, str | int | float):
        raise InvalidInputError(
            f"where: {key!r}: expected text, a number, true or false, got {value!r}"
        )
    return _bindable(value)


def _bindable(value: Any) -> Any:
    """A JSON scalar as SQLite takes it."""
    if isinstance(value, str):
        return store_text(compared(value))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:  # SQLite reads such a number in JSON as infinite, too
            return math.inf if value > 0 else -math.inf
    return value
