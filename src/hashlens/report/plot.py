"""Curves and bars that colour-blind readers and grey print can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hashlens.errors import needs_extra
from hashlens.files import replace_file

# Okabe-Ito colours; curves also differ in marker and dash, so that colour is never needed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
HATCHES = ("", "//", "..", "xx")
DASHES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Its style says: measured; printed elsewhere and not measured here; measured points alone; a thin
    line without points. It takes colour and marker of the curve named in ``like``, and is then not
    in the legend.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "dotted", "points", "model"] = "line"
    like: str = ""

    @classmethod
    def through(cls, points: Mapping[Any, float]) -> Curve:
        """A line through y by x; an x may be written as text."""
        return cls([float(x) for x in points], list(points.values()))


def panels(count: int = 1) -> list[Any]:
    """Axes of a new figure, from left to right."""
    with needs_extra("drawing plots", "train"):
        from matplotlib.figure import Figure
    # No pyplot: no global state, no display.
    size = (7.2, 4.4) if count == 1 else (5.2 * count, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    drawn = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in drawn:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def plot_curves(
    curves: Mapping[str, Curve], *, axes: Any = None, ends: bool = False, **settings: Any
) -> Any:
    """Draw curves in one plot, named in a legend or at the ends of their lines.

    ``settings`` are those of matplotlib's ``Axes.set``, such as ``xlabel`` and ``yscale``.
    """
    alone = axes is None
    axes = axes or panels()[0]
    own = [name for name, curve in curves.items() if not curve.like]
    for name, curve in curves.items():
        place = own.index(curve.like or name)
        dash = {"line": DASHES[place % len(DASHES)], "dotted": ":", "points": "", "model": "-"}
        axes.plot(
            curve.x,
            curve.y,
            label=None if curve.like else name,
            color=COLOURS[place % len(COLOURS)],
            marker="" if curve.style == "model" else MARKERS[place % len(MARKERS)],
            linestyle=dash[curve.style],
            linewidth=1.8 if curve.style == "line" else 1.2,
            markersize=5,
            markevery=max(1, len(curve.x) // 12),
            markerfacecolor="white" if curve.style == "dotted" else None,
        )
    axes.set(**settings)
    if ends:
        _name_ends(axes, {name: curves[name] for name in own})
    elif alone and len(own) > 4:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=4)
    else:
        axes.legend(frameon=False, handlelength=4, fontsize=None if alone else 8)
    return axes.figure


def _name_ends(axes: Any, curves: Mapping[str, Curve]) -> None:
    """Write each curve's name right of its last point, with room between the names."""
    axes.figure.set_size_inches(8.6, 6.6)
    low, high = axes.get_ylim()
    place = -float("inf")
    for name, curve in sorted(curves.items(), key=lambda item: item[1].y[-1]):
        place = max(curve.y[-1], place + (high - low) / 26)
        axes.annotate(
            f"  {name}",
            (curve.x[-1], curve.y[-1]),
            xytext=(curve.x[-1], place),
            color=COLOURS[list(curves).index(name) % len(COLOURS)],
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def plot_steps(
    groups: Mapping[str, Sequence[float]], *, line: float | None = None, **settings: Any
) -> Any:
    """Draw steps over 0, 1, 2, ...: histograms that overlap and differ in their dashes."""
    axes = panels()[0]
    for place, (name, heights) in enumerate(groups.items()):
        edges = [i - 0.5 for i in range(len(heights) + 1)]
        colour = COLOURS[place % len(COLOURS)]
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
        dash = DASHES[place % len(DASHES)]
        axes.stairs(heights, edges, label=name, color=colour, linestyle=dash, linewidth=1.8)
    if line is not None:
        axes.axvline(line, color="#000000", linewidth=1, linestyle=":")
    if len(groups) > 1:
        axes.legend(frameon=False, handlelength=4)
    axes.set(**settings)
    return axes.figure


def plot_bars(
    groups: Mapping[str, Sequence[float]], ticks: Sequence[str], *, axes: Any, **settings: Any
) -> None:
    """Draw one bar of each group at every tick, next to each other."""
    width = 0.8 / len(groups)
    for place, (name, heights) in enumerate(groups.items()):
        at = [tick + width * (place - (len(groups) - 1) / 2) for tick in range(len(ticks))]
        look = {"color": COLOURS[place % len(COLOURS)], "hatch": HATCHES[place % len(HATCHES)]}
        axes.bar(at, heights, 0.95 * width, label=name, edgecolor="white", **look)
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    axes.set(**settings)


def plot_matrix(values: Any, **settings: Any) -> Any:
    """Draw a square matrix of values between 0 and 1, dark to light."""
    axes = panels()[0]
    axes.grid(False)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    axes.figure.colorbar(image, ax=axes)
    axes.set(**settings)
    return axes.figure


def save_figure(figure: Any, folder: Path, name: str, *, svg: bool = True) -> Path:
    """Write NAME.png and, where asked for, NAME.svg into a folder; return the last one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    replace_file(path, partial(figure.savefig, dpi=160))
    if svg:
        path = folder / f"{name}.svg"
        replace_file(path, partial(figure.savefig, metadata={"Date": None}))
    return path
