"""Many methods in one plot: measured lines, printed ones dotted in the same colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hashlens.errors import MissingExtraError
from hashlens.evaluation.plots import COLOURS, DASHES, MARKERS


class Measured(NamedTuple):
    """Precision at k of a method, measured and printed (empty if it was not printed)."""

    precision: Mapping[str, float]
    printed: Mapping[int, float]


def comparison_figure(curves: Mapping[str, Measured], *, first: int = 100) -> Any:
    """Draw precision at k; names stand at the ends of their lines.

    Parameters
    ----------
    curves : mapping of str to Measured
        By method.
    first : int
        Smallest k that is drawn.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing plots", "train") from error
    figure = Figure(figsize=(8.6, 6.6))
    axes = figure.add_subplot()
    ends = {}
    for position, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[position % len(COLOURS)]
        points = [(int(k), value) for k, value in curve.precision.items() if int(k) >= first]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=MARKERS[position % len(MARKERS)],
            linestyle=DASHES[position // len(COLOURS)],
            linewidth=1.8,
            markersize=5,
        )
        if curve.printed:
            axes.plot(
                *zip(*sorted(curve.printed.items()), strict=True),
                color=colour,
                linestyle=":",
                linewidth=1.4,
                marker=MARKERS[position % len(MARKERS)],
                markersize=4,
                markerfacecolor="white",
            )
        ends[name] = (points[-1][1], colour)
    low, high = axes.get_ylim()
    for name, (height, place) in _spread(ends, (high - low) / 26).items():
        axes.annotate(
            name,
            (1000, height),
            xytext=(1025, place),
            color=ends[name][1],
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
    axes.set_xlabel("k")
    axes.set_ylabel("precision at k")
    axes.set_xlim(first - 20, 1010)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _spread(ends: Mapping[str, tuple[float, str]], gap: float) -> dict[str, tuple[float, float]]:
    """Heights of line ends, each with a height for its name at least ``gap`` above the last."""
    places: dict[str, tuple[float, float]] = {}
    last = -float("inf")
    for name, (height, _) in sorted(ends.items(), key=lambda item: item[1][0]):
        last = max(height, last + gap)
        places[name] = (height, last)
    return places
