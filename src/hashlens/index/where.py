"""``where``: conditions on label and metadata as SQL that carries every value as a parameter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

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


_Sql: TypeAlias = tuple[str, list[Any]]  # an expression, and its parameters


def compile_where(where: Mapping[str, Any] | None) -> _Sql:
    """Conditions as SQL, and its parameters."""
    parts: list[_Sql] = []
    for key, wanted in (where or {}).items():
        if not isinstance(key, str):
            raise InvalidInputError(f"where: expected text as keys, got {key!r}")
        sql, parameters = _condition(key, wanted)
        parts.append((f"({sql})", parameters))
    return _joined(" AND ", parts)


def _joined(word: str, parts: list[_Sql]) -> _Sql:
    return word.join(sql for sql, _ in parts), [each for _, own in parts for each in own]


def _condition(key: str, wanted: Any) -> _Sql:
    if hasattr(wanted, "tolist"):  # NumPy's arrays and scalars
        wanted = wanted.tolist()
    if isinstance(wanted, Mapping):
        unknown = [sign for sign in wanted if sign not in _COMPARISONS]
        if unknown or not wanted:
            raise InvalidInputError(
                f"where: {key!r}: expected {', '.join(_COMPARISONS)}, got {list(wanted)}"
            )
        return _comparisons(key, wanted)
    if isinstance(wanted, Sequence | set | frozenset) and not isinstance(wanted, str | bytes):
        return _among(key, list(wanted))
    return _among(key, [wanted])


def _columns(key: str) -> tuple[_Sql, _Sql]:
    """A value as SQLite finds it, and as Python does: in NFC, and whole where it holds a NUL."""
    if key == "label":
        return ("label", []), (f"{LABEL_FUNCTION}(label)", [])
    exact: _Sql = f"{METADATA_FUNCTION}(metadata, ?)", [store_text(key)]
    if _PLAIN_KEY.fullmatch(key):
        return ("json_extract(metadata, ?)", [f'$."{key}"']), exact
    return exact, exact


def _among(key: str, wanted: list[Any]) -> _Sql:
    """One of some values: the column is computed once for all that SQLite compares alike."""
    if key == "label":  # SQLite would take true for the label 1
        wanted = [value for value in wanted if not isinstance(value, bool)]
    values = [_checked(key, value) for value in wanted if value is not None]
    column, exact = _columns(key)
    words = [value for value in values if isinstance(value, str) and value.isascii()]
    words = [value for value in words if "\0" not in value]
    plain = words + [value for value in values if not isinstance(value, str | bytes)]
    odd = [value for value in values if value not in plain]
    parts: list[_Sql] = []
    if len(values) < len(wanted):
        parts.append((f"{column[0]} IS NULL", column[1]))
    if plain:
        sql, parameters = _in(column, plain)
        if words and key != "label":  # SQLite's JSON functions end text at the first NUL
            again, more = _in(exact, words)
            sql += (
                f" AND (instr(metadata, '\\u0000') = 0 OR typeof({column[0]}) != 'text' OR {again})"
            )
            parameters += [*column[1], *more]
        parts.append((f"({sql})", parameters))
    if odd:
        parts.append(_in(exact, odd))
    return _joined(" OR ", parts or [("0", [])])


def _in(column: _Sql, values: list[Any]) -> _Sql:
    return f"{column[0]} IN ({', '.join('?' * len(values))})", [*column[1], *values]


def _comparisons(key: str, wanted: Mapping[str, Any]) -> _Sql:
    (column, own), _ = _columns(key)
    parts: list[_Sql] = []
    for sign in _COMPARISONS:
        if sign in wanted:
            value = _checked(key, wanted[sign])
            # SQLite orders all numbers before all text; only values of the same kind compare.
            kind = "('text', 'blob')" if isinstance(value, str | bytes) else "('integer', 'real')"
            sql = f"(typeof({column}) IN {kind} AND {column} {sign} ?)"
            parts.append((sql, [*own, *own, value]))
    return _joined(" AND ", parts)


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
