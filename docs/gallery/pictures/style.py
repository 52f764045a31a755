"""Colors, type, and lines with their names at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

# Each mid-tone that is drawn, which can be read on white and on black, and what it becomes on a
# light and on a dark page. The hues are Okabe and Ito's, which people with any color vision tell
# apart.
SHADES = {
    "#7b7b7b": ("#343a40", "#ced3d8"),
    "#8f8f8f": ("#8b9198", "#7f868d"),
    "#2a86c8": ("#0072b2", "#56b4e9"),
    "#d9651f": ("#c94f00", "#f28c4e"),
    "#159e77": ("#00805c", "#3cc79e"),
    "#b96a9b": ("#a64d84", "#e2a0c5"),
}
INK, FAINT, BLUE, ORANGE, GREEN, PURPLE = SHADES
HUES = (BLUE, ORANGE, GREEN, PURPLE)

STYLE = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.8),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3),
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    "lines.linewidth": 1.8,
    "svg.hashsalt": "torchreg",  # so that the same figure is the same file
}


def figure(description: str, width: float = 3.4, height: float = 2.9) -> Axes:
    """The axes of a new figure, described for readers who do not see the figure."""
    plt.rcParams.update(STYLE)
    new, axes = plt.subplots(figsize=(width, height), layout="constrained")
    new.set_label(description)
    return axes


def write(axes: Axes, x: float, y: float, text: str, color: str, **where: Any) -> None:
    """Small text at a place in units of the axes."""
    axes.text(x, y, text, color=color, transform=axes.transAxes, fontsize=8, **where)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]], gap: float = 0.085) -> None:
    """Writes the names of lines ``(name, color, y)`` at their right ends, apart from each other."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: -end[2])
    heights = [gap * (1 + name.count("\n")) for name, _, _ in ends]
    below, ceiling = sum(heights), 1 + gap / 2
    for (name, color, y), height in zip(ends, heights, strict=True):
        below -= height  # what the names that follow need
        at = min(max((y - low) / (high - low), below), ceiling - height / 2)
        write(axes, 1.02, at, name, color, va="center")
        ceiling = at - height / 2


def lines(
    title: str,
    series: Mapping[str, tuple[Any, Any]],
    *,
    size: tuple[float, float] = (3.4, 2.9),
    colors: Sequence[str] = HUES,
    labels: bool = True,
    level: tuple[str, float] | None = None,
    **settings: Any,
) -> None:
    """Lines with their names at their ends.

    Args:
        title: above.
        series: x and y of each line, under its name.
        size: of the figure, in inches.
        colors: one for each line.
        labels: whether the names are written.
        level: the name and the height of a dashed line.
        settings: of the axes.
    """
    axes = figure(f"{title}: {', '.join(series)}" if any(series) else title, *size)
    ends = []
    for (name, (x, y)), color in zip(series.items(), colors, strict=False):
        axes.plot(x, y, color=color)
        ends.append((name, color, float(y[-1])))
    axes.locator_params(nbins=5)
    axes.margins(x=0)
    axes.set(title=title, **settings)
    if labels:
        label_ends(axes, ends)
    if level is not None:
        name, y = level
        axes.axhline(y, color=INK, lw=0.8, linestyle="dashed")
        beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        axes.annotate(name, (0.98, y), (0, 3), ha="right", va="bottom", **beside)


def histogram(title: str, values: Tensor, color: str = BLUE) -> None:
    """The shares of values from -1 to 3."""
    axes = figure(title, 3.3, 2.3)
    shares = np.full(values.numel(), 100 / values.numel())
    axes.hist(values.numpy(), 41, range=(-1.05, 3.05), weights=shares, color=color, alpha=0.8)
    axes.set(title=title, xlim=(-1.05, 3.05), ylabel="share, %")
