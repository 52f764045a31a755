"""The common style of all figures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.report.statistics import Mean
from experiments.report.summary import Summary

TEST, TRAIN, VALID, PLAIN, INK, FAINT = "#c2410c", "#2563a8", "#0f766e", "#64748b", "#1e293b", "#e2e8f0"

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "text.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # an arm may be called what it likes
    "svg.hashsalt": "torchreg",  # the same study renders to the same bytes
}


def errors_of(summary: Summary) -> dict[str, tuple[str, str]]:
    """The two errors that are drawn, by their names: the figure, and its color."""
    return {f"training {summary.error}": ("train_error", TRAIN), f"test {summary.error}": ("test_error", TEST)}


def as_errors(axis: Axis, summary: Summary) -> None:
    """Writes the errors on an axis in percent, if they are shares."""
    if not summary.is_regression:
        axis.set_major_formatter(PercentFormatter(1, decimals=0))


def band(axes: Axes, x: np.ndarray, means: Sequence[Mean], color: Any, label: str, marker: str = "") -> None:
    """A line of means, with a band of one standard error where it is known."""
    middle, error = np.array([(value, 0.0 if se is None else se) for value, se in means]).T
    axes.plot(x, middle, color=color, linewidth=1.6, label=label, marker=marker, markersize=4)
    axes.fill_between(x, middle - error, middle + error, color=color, alpha=0.2, linewidth=0)


def svg(figure: Figure) -> Markup:
    """The figure as an SVG element of a page."""
    buffer = io.StringIO()
    with warnings.catch_warnings(action="ignore"):  # a glyph that the font here lacks: the reader's has it
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]))
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
