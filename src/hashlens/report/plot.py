"""Curves and bars, legible to colour-blind readers and in grey print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hashlens.errors import MissingExtraError
from hashlens.files import replace_file

# Okabe-Ito colours; lines also differ in marker and dash, so that colour is never needed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes
    ----------
    x, y : sequence of float
        Its points.
    dotted : bool
        Drawn thin and dotted: a figure printed elsewhere, not measured here.
    """

    x: Sequence[float]
    y: Sequence[float]
    dotted: bool = False


def plot_curves(
    curves: Mapping[str, Curve],
    *,
    x_label: str = "k",
    y_label: str = "precision at k",
    title: str = "",
    y_range: tuple[float, float] | None = None,
) -> Any:
    """Draw curves in one plot."""
    figure, axes = _figure(title, x_label, y_label)
    for position, (name, curve) in enumerate(curves.items()):
        axes.plot(
            curve.x,
            curve.y,
            label=name,
            color=COLOURS[position % len(COLOURS)],
            marker=MARKERS[position % len(MARKERS)],
            linestyle=":" if curve.dotted else DASHES[position % len(DASHES)],
            linewidth=1.2 if curve.dotted else 1.8,
            markersize=5,
            markevery=max(1, len(curve.x) // 12),
            markerfacecolor="white" if curve.dotted else None,
        )
    if y_range is not None:
        axes.set_ylim(*y_range)
    if len(curves) > 4:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
    else:
        axes.legend(frameon=False, handlelength=4)
    return figure


def plot_bars(
    groups: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    line: float | None = None,
) -> Any:
    """Draw steps over 0, 1, 2, ...: histograms that overlap and are told apart by dash."""
    figure, axes = _figure(title, x_label, y_label)
    for position, (name, heights) in enumerate(groups.items()):
        edges = [i - 0.5 for i in range(len(heights) + 1)]
        colour = COLOURS[position % len(COLOURS)]
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(
            heights,
            edges,
            label=name,
            color=colour,
            linestyle=DASHES[position % len(DASHES)],
            linewidth=1.8,
        )
    if line is not None:
        axes.axvline(line, color="#000000", linewidth=1, linestyle=":")
    if len(groups) > 1:
        axes.legend(frameon=False, handlelength=4)
    return figure


def plot_matrix(values: Any, *, label: str, title: str = "") -> Any:
    """Draw a square matrix of values between 0 and 1, dark to light."""
    figure, axes = _figure(title, label, label)
    axes.grid(False)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    figure.colorbar(image, ax=axes)
    return figure


def save_figure(figure: Any, directory: Path, name: str) -> Path:
    """Write NAME.svg and NAME.png into a directory, made if need be; return the SVG's path."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = partial(figure.savefig, bbox_inches="tight")
    replace_file(directory / f"{name}.png", partial(draw, dpi=160))
    path = directory / f"{name}.svg"
    replace_file(path, partial(draw, metadata={"Date": None}))
    return path


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing plots", "train") from error
    figure = Figure(figsize=(7.2, 4.4))  # no pyplot: no global state, no display
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
