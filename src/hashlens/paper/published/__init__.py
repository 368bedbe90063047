"""Figures that the authors printed, to compare with what is measured here."""

from __future__ import annotations

import csv
from importlib.resources import files

OURS = "Hashlens"
"""Name of this implementation's own method in tables; the authors call theirs DLBHC."""

_NAMES = {"DLBHC": OURS}


def _rows(name: str) -> list[dict[str, str]]:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def printed_precision(piece: str, bits: int) -> dict[str, dict[int, float]]:
    """Printed precision at k with so many bits, by method; empty where none was printed."""
    found: dict[str, dict[int, float]] = {}
    if piece == "cifar10":
        for row in _rows("cifar10_precision_at_k.csv"):
            if int(row["bits"]) == bits:
                name = _NAMES.get(row["method"], row["method"])
                found.setdefault(name, {})[int(row["k"])] = float(row["precision"])
    return found


def printed_map(piece: str) -> dict[str, dict[int, float]]:
    """Printed mean average precision, by method and bits; empty where none was printed."""
    if piece != "cifar10":
        return {}
    return {
        _NAMES.get(row["method"], row["method"]): {
            int(key.removeprefix("bits_")): float(value)
            for key, value in row.items()
            if key.startswith("bits_")
        }
        for row in _rows("cifar10_map_at_1000.csv")
    }


def printed_figure(piece: str, figure: str, bits: int) -> float | None:
    """One other figure of the paper, or None."""
    for row in _rows("paper.csv"):
        if (row["piece"], row["figure"], int(row["bits"])) == (piece, figure, bits):
            return float(row["value"])
    return None
