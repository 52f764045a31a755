"""The report's figures, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.report import paths
from experiments.report.canvas import PLAIN, STYLE, TEST, TRAIN, as_errors, band, errors_of, svg
from experiments.report.statistics import mean
from experiments.report.summary import Cell, Summary


class Picture(NamedTuple):
    """A figure with its heading and an explanation."""

    title: str
    text: str
    svg: Markup


def all_of(summary: Summary) -> list[Picture]:
    """All figures for which the study has data."""
    cells = [cell for cell in summary.chosen if cell.is_done]
    if not cells:
        return []

    def said(text: str) -> str:
        return text.format(over=summary.over_seeds, metric=summary.metric_in_words, error=summary.error)

    with rc_context(STYLE):
        pictures = [
            Picture(
                "Where each arm ends", said(_ENDS) + (_NOISE if summary.label_noise else ""), _ends(cells, summary)
            ),
            Picture("How it got there", said(_CURVES), _curves(cells, summary)),
        ]
        if found := [path for path in summary.paths if any(cell.number for cell in path)]:
            pictures.append(Picture(f"Along the {paths.axis_of(found)}", said(_PATHS), paths.along(found, summary)))
        if summary.clouds:
            pictures.append(Picture("Every point that was tried", said(_CLOUDS), paths.over(summary)))
        if any(cell.results[0]["norms"] for cell in cells):  # else no weights to show
            pictures.append(Picture("The weights", _HISTOGRAMS, _histograms(cells)))
            pictures.append(Picture("Layer by layer", said(_LAYERS), _layers(cells)))
    return pictures


_ENDS = "Training {error} (open) and test {error} (filled), {over}; between them the gap."
_NOISE = " The dotted line is the share of wrong training labels: an arm to the left of it has memorized some of them."
_CURVES = "Training and test {error} after each epoch, {over}, without the steep start."
_PATHS = "Errors, the norm of each layer's weights, and the share of exact zeros, {over}."
_CLOUDS = "Each dot is a point, at one of its values and its {metric}. The ring marks the best, gray dots were pruned."
_HISTOGRAMS = (
    "The sizes of all weights, on a logarithmic axis. What has no place on it, such as exact zeros, is written."
)
_LAYERS = "The share of exact zeros and the Euclidean norm of each layer's weights, {over}."


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
    axes.errorbar([], [], fmt="o", color=TRAIN, markerfacecolor="white", label=f"training {summary.error}")
    axes.errorbar([], [], fmt="o", color=TEST, label=f"test {summary.error}")
    if summary.label_noise:
        axes.axvline(summary.label_noise, color=PLAIN, linestyle=":", linewidth=1.2, zorder=0)
    axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.01 * top, top), ylim=(len(cells) - 0.5, -0.5))
    as_errors(axes.xaxis, summary)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2)
    return svg(figure)


def _curves(cells: Sequence[Cell], summary: Summary) -> Markup:
    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(9.2, 2.3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, cell in zip(grid.flat, cells, strict=False):
        for name, (key, color) in errors_of(summary).items():
            length = min(map(len, cell.histories))  # seeds may stop early at different epochs
            epochs = zip(*(history[:length] for history in cell.histories), strict=True)
            errors = [mean([row[key] for row in rows]) for rows in epochs]
            band(axes, np.array([row["epoch"] for row in cell.histories[0][:length]]), errors, color, name)
        if max(cell.mean("train_error").mean, cell.mean("test_error").mean) > _top(cells):
            axes.text(0.5, 0.5, _beyond(cell), transform=axes.transAxes, ha="center", va="center", color=TEST)
        axes.set_title(cell.label)
        as_errors(axes.yaxis, summary)
        axes.set_ylim(0, _top(cells))
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return svg(figure)


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
    return svg(figure)


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
    return svg(figure)


def _top(cells: Sequence[Cell]) -> float:
    """The largest error on the axes, so that one arm that under-fits does not flatten all others."""
    middle = float(np.median([cell.mean("test_error").mean for cell in cells]))
    if not any(cell.is_regression for cell in cells):
        return min(1.0, 3 * middle + 0.02)
    largest = max(cell.mean(key).mean for cell in cells for key in ("train_error", "test_error"))
    return min(3 * middle, 1.15 * largest) or 1.0


def _beyond(cell: Cell) -> str:
    train, test = cell.mean("train_error").mean, cell.mean("test_error").mean
    if cell.is_regression:
        return f"training {train:.3g},\ntest {test:.3g}"
    return f"training {100 * train:.0f} %,\ntest {100 * test:.0f} %"
