"""The report's pictures, as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.summary import Cell, Summary, mean

TEST, TRAIN, PLAIN, INK, FAINT = "#c2410c", "#2563a8", "#64748b", "#1e293b", "#e2e8f0"

_ERRORS = {"training error": ("train_error", TRAIN), "test error": ("test_error", TEST)}

_STYLE: dict[Any, Any] = {
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


class Picture(NamedTuple):
    """A picture with its heading and a line on how to read it."""

    title: str
    text: str
    svg: Markup


def all_of(summary: Summary) -> list[Picture]:
    """Every picture that the study has data for."""
    cells = [cell for cell in summary.chosen if not cell.diverged]
    paths = [path for path in summary.paths if any(cell.strength for cell in path)]
    if not cells:
        return []
    with rc_context(_STYLE):
        pictures = [
            Picture("Where each arm ends", _ENDS + (_NOISE if summary.label_noise else ""), _ends(cells, summary)),
            Picture("How it got there", _CURVES, _curves(cells)),
        ]
        if paths:
            pictures.append(Picture("Error against strength", _PATHS, _paths(paths, summary)))
        if any(cell.results[0]["norms"] for cell in cells):  # else no weights to show
            pictures.append(Picture("The weights", _HISTOGRAMS, _histograms(cells)))
            pictures.append(Picture("Layer by layer", _LAYERS, _layers(cells)))
    return pictures


_ENDS = "Training error (open) and test error (filled), mean over seeds with one standard error; between them the gap."
_NOISE = " The dotted line is the share of wrong training labels: an arm to the left of it has learned some by heart."
_CURVES = "Training and test error after each epoch, mean over seeds with one standard error, without the steep start."
_PATHS = "From none to far too much. The ring marks the strength with the lowest validation error."
_HISTOGRAMS = (
    "The sizes of all weights, on a logarithmic axis. What has no place on it, such as exact zeros, is written."
)
_LAYERS = "The share of exact zeros and the Euclidean norm of each layer's weights, mean over seeds."


def _ends(cells: Sequence[Cell], summary: Summary) -> Markup:
    figure = Figure(figsize=(9.2, 0.9 + 0.42 * len(cells)), layout="constrained")
    axes = figure.subplots()
    top = _top(cells)
    for y, cell in enumerate(cells):
        train, test = cell.mean("train_error"), cell.mean("test_error")
        if max(train.mean, test.mean) > top:
            axes.text(0.99 * top, y, _beyond(cell), ha="right", va="center", color=TEST)
            continue
        axes.plot([train.mean, test.mean], [y, y], color="#cbd5e1", linewidth=5, solid_capstyle="round", zorder=1)
        axes.errorbar(train.mean, y, xerr=train.se, fmt="o", color=TRAIN, markerfacecolor="white", markersize=7)
        axes.errorbar(test.mean, y, xerr=test.se, fmt="o", color=TEST, markersize=7)
    axes.errorbar([], [], fmt="o", color=TRAIN, markerfacecolor="white", label="training error")
    axes.errorbar([], [], fmt="o", color=TEST, label="test error")
    if summary.label_noise:
        axes.axvline(summary.label_noise, color=PLAIN, linestyle=":", linewidth=1.2, zorder=0)
    axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.01 * top, top), ylim=(len(cells) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2)
    return _svg(figure)


def _curves(cells: Sequence[Cell]) -> Markup:
    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(9.2, 2.3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, cell in zip(grid.flat, cells, strict=False):
        for name, (key, color) in _ERRORS.items():
            length = min(map(len, cell.histories))  # seeds may stop early at different epochs
            errors = np.array([[row[key] for row in history[:length]] for history in cell.histories])
            _band(axes, np.arange(1, length + 1), errors, color, name)
        if max(cell.mean("train_error").mean, cell.mean("test_error").mean) > _top(cells):
            axes.text(0.5, 0.5, _beyond(cell), transform=axes.transAxes, ha="center", va="center", color=TEST)
        axes.set_title(cell.label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, _top(cells))
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return _svg(figure)


def _paths(paths: Sequence[Sequence[Cell]], summary: Summary) -> Markup:
    figure = Figure(figsize=(9.2, 3.1), layout="constrained")
    grid = figure.subplots(1, len(paths), sharey=True, squeeze=False)
    for axes, path in zip(grid.flat, paths, strict=True):
        strengths = [cell.strength or 0.0 for cell in path]
        positive = [s for s in strengths if s > 0]
        places = np.array([np.log10(s) if s > 0 else np.log10(positive[0]) - 0.5 for s in strengths])
        for name, (key, color) in _ERRORS.items():
            errors = np.array([[result[key] for result in cell.results] for cell in path]).T
            _band(axes, places, errors, color, name, marker="o")
        best = next(i for i, cell in enumerate(path) if cell in summary.chosen)
        axes.plot(places[best], path[best].mean("test_error").mean, "o", ms=13, mfc="none", mec=INK, mew=1.3)
        if summary.plain is not None:
            level = summary.plain.mean("test_error").mean
            axes.axhline(level, color=PLAIN, linestyle="--", linewidth=1, label="test error, unregularized", zorder=1)
        axes.set_xticks(places, [f"{s:g}" for s in strengths])
        axes.set(title=path[0].arm, xlabel="strength")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid.flat[0].set_ylim(bottom=0)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return _svg(figure)


def _histograms(cells: Sequence[Cell]) -> Markup:
    figure = Figure(figsize=(9.2, 0.9 + 0.55 * len(cells)), layout="constrained")
    axes = figure.subplots()
    edges = np.array(cells[0].results[0]["histogram"]["edges"])
    centers = (edges[1:] + edges[:-1]) / 2
    for y, cell in enumerate(cells):
        histograms = [result["histogram"] for result in cell.results]
        share = np.mean([histogram["shares"] for histogram in histograms], axis=0)
        ridge = y - 0.85 * share / max(share.max(), 1e-9)
        axes.fill_between(centers, y, ridge, color=TRAIN, alpha=0.75, linewidth=0, zorder=3 + y)
        notes = {"exact zeros": cell.mean("zeros").mean}
        for side, edge in (("below", edges[0]), ("above", edges[-1])):
            notes[f"{side} {10.0**edge:g}"] = float(np.mean([histogram[side] for histogram in histograms]))
        text = ", ".join(f"{100 * part:.1f} % {name}" for name, part in notes.items() if part > 5e-4)
        axes.text(edges[0] + 0.1, y - 0.12, text, color=TEST, fontsize=9, zorder=99)
    axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes.set_xticks(range(-6, 2), [f"{10.0**k:g}" for k in range(-6, 2)])
    axes.set(xlim=(-6, 1), ylim=(len(cells) - 0.6, -1.1), xlabel="|weight|")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def _layers(cells: Sequence[Cell]) -> Markup:
    figure = Figure(figsize=(9.2, 0.9 + 0.36 * len(cells)), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    layers = list(dict.fromkeys(layer for cell in cells for layer in cell.results[0]["norms"]))
    for axes, key, unit in zip(grid, ("sparsity", "norms"), (100, 1), strict=True):
        means = [[np.mean([result[key].get(layer, np.nan) for result in c.results]) for layer in layers] for c in cells]
        values = unit * np.array(means)
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1.6 * np.nanmax(values) or 1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
        axes.set_title("exact zeros, %" if key == "sparsity" else "norm")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return _svg(figure)


def _band(axes: Axes, x: np.ndarray, runs: np.ndarray, color: str, label: str, marker: str = "") -> None:
    """The mean over runs (axis 0), with one standard error either side."""
    middle, error = np.array([mean(column) for column in runs.T.tolist()]).T
    axes.plot(x, middle, color=color, linewidth=1.6, label=label, marker=marker, markersize=4)
    axes.fill_between(x, middle - error, middle + error, color=color, alpha=0.2, linewidth=0)


def _top(cells: Sequence[Cell]) -> float:
    """The largest error on the axes: one arm that under-fits must not flatten all the others."""
    return float(min(1.0, 3 * np.median([cell.mean("test_error").mean for cell in cells]) + 0.02))


def _beyond(cell: Cell) -> str:
    train, test = cell.mean("train_error").mean, cell.mean("test_error").mean
    return f"training {100 * train:.0f} %,\ntest {100 * test:.0f} %"


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings(action="ignore"):  # a glyph that the font here lacks: the reader's has it
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]))
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
