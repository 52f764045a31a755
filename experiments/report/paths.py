"""Figures of an arm with several values: over one number, or over each of several keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.config.names import short, text_of
from experiments.report.canvas import INK, TEST, TRAIN, VALID, as_errors, band, errors_of, svg
from experiments.report.statistics import mean
from experiments.report.summary import Cell, Summary, best_of, of_metric, one_standard_error


def axis_of(paths: Sequence[Sequence[Cell]]) -> str:
    """The varied key of all paths."""
    names = {short(path[0].point)[0] for path in paths}
    return names.pop() if len(names) == 1 else "strength"


def along(paths: Sequence[Sequence[Cell]], summary: Summary) -> Markup:
    """A grid of plots: errors, norms and zeros in rows, the arms in columns with a common axis."""
    has_zeros = any(cell.mean("zeros").mean for path in paths for cell in path)
    rows = 3 if has_zeros else 2
    figure = Figure(figsize=(9.2, 0.6 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, len(paths), sharex="col", sharey="row", squeeze=False)
    for column, path in zip(grid.T, paths, strict=True):
        values = [float(cell.number or 0.0) for cell in path]
        places = _ticks(column[-1], values, _is_log(values, path[0].is_strength), most=9 // len(paths))
        _path_of_errors(column[0], places, path, summary)
        _path_of_layers(column[1], places, path, "norms")
        if has_zeros:
            _path_of_layers(column[2], places, path, "sparsity")
            band(column[2], places, [cell.mean("zeros") for cell in path], INK, "all weights", marker="o")
        _mark(column, places, path, summary)
        column[0].set_title(path[0].arm, pad=18)
        column[-1].set_xlabel(short(path[0].point)[0])
    for axes, label in zip(grid[:, 0], ("error", "norm of the weights", "exact zeros"), strict=False):
        axes.set_ylabel(summary.error if label == "error" else label)
        axes.set_ylim(bottom=0)
    grid[0, 0].set_ylim(0, _path_top(paths, summary))
    for row, is_last in ((grid[0], False), (grid[-1], True)):  # the last has a line for each layer, as those above it
        named = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in row]
        lines = {label: line for one in named for label, line in one.items()}
        if len(lines) <= 10:
            corner: Literal["outside lower center", "outside upper right"]
            corner = "outside lower center" if is_last else "outside upper right"
            figure.legend(list(lines.values()), list(lines), loc=corner, ncols=5)
    return svg(figure)


def _path_top(paths: Sequence[Sequence[Cell]], summary: Summary) -> float:
    """The largest error on the axis: twice that of the start and the best; far too strong values lie beyond."""
    near = [cell for path in paths for cell in (path[0], best_of(path, summary.metric)) if cell is not None]
    near_top, top = (
        max(cell.mean(key).mean for cell in cells for key in ("train_error", "valid_error", "test_error"))
        for cells in (near, [cell for path in paths for cell in path])
    )
    return min(2 * near_top, 1.05 * top) or 1.0


def _path_of_errors(axes: Axes, places: np.ndarray, path: Sequence[Cell], summary: Summary) -> None:
    for name, (key, color) in {**errors_of(summary), f"validation {summary.error}": ("valid_error", VALID)}.items():
        band(axes, places, [of_metric(cell, key) for cell in path], color, name, marker="o")
    if summary.plain is not None:
        level = summary.plain.mean("test_error").mean
        axes.axhline(level, color=TEST, linestyle="--", linewidth=1, label="test, unregularized", zorder=1)
    as_errors(axes.yaxis, summary)


def _path_of_layers(axes: Axes, places: np.ndarray, path: Sequence[Cell], key: str) -> None:
    """A line for each layer."""
    layers = list(dict.fromkeys(layer for cell in path for layer in cell.results[0][key]))
    for i, layer in enumerate(layers):
        found = [[result[key][layer] for result in cell.results if layer in result[key]] for cell in path]
        means = [mean(values or [math.nan]) for values in found]
        band(axes, places, means, colormaps["viridis"](0.85 * i / max(len(layers) - 1, 1)), layer, marker="o")
    if key == "sparsity":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _mark(column: Sequence[Axes], places: np.ndarray, path: Sequence[Cell], summary: Summary) -> None:
    """Vertical lines at the best value, and at the strongest value within one standard error of it."""
    best = best_of(path, summary.metric)
    assert best is not None
    strongest = one_standard_error(path, best, summary.metric) if best.is_strength else best
    marks = {"best": best} if strongest is best else {"best": best, "one SE": strongest}
    for name, cell in marks.items():
        place = places[path.index(cell)]
        for axes in column:
            axes.axvline(place, color=INK, linestyle=":", linewidth=1.2, zorder=1)
        side = "center" if len(marks) == 1 else "right" if cell is best else "left"
        beside: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": side, "fontsize": 9}
        column[0].annotate(f"{name}: {cell.number:.3g}", (place, 1), xycoords=("data", "axes fraction"), **beside)


def _ticks(axes: Axes, values: Sequence[float], is_log: bool, most: int) -> np.ndarray:
    """The positions of the values on the axis; on a logarithmic axis 0 is half a decade before the smallest value."""
    if not is_log:
        return np.array(values)
    smallest, largest = min(value for value in values if value > 0), max(values)
    places = np.array([np.log10(value) if value > 0 else np.log10(smallest) - 0.5 for value in values])
    decades = range(math.ceil(np.log10(smallest) - 1e-9), math.floor(np.log10(largest) + 1e-9) + 1)
    if len(set(values)) <= most:
        ticks = {place: f"{value:.3g}" for place, value in zip(places, values, strict=True)}
    elif len(decades) < 2:
        ticks = {np.log10(value): f"{value:.2g}" for value in (smallest, largest)}
    else:
        ticks = {float(decade): f"{10.0**decade:g}" for decade in decades[:: -(-len(decades) // most)]}
        ticks |= {place: "0" for place, value in zip(places, values, strict=True) if value == 0}
    axes.set_xticks(list(ticks), list(ticks.values()))
    return places


def _is_log(values: Sequence[float], is_strength: bool) -> bool:
    positive = [value for value in values if value > 0]
    if is_strength:
        return bool(positive)
    return len(positive) == len(values) and max(values) > 20 * min(values)


def over(summary: Summary) -> Markup:
    """The metric against the value, for each searched arm and key."""
    clouds = summary.clouds
    keys = list(clouds[0][0].point)
    each = -(-len(keys) // 4)
    columns = -(-len(keys) // each)
    figure = Figure(figsize=(9.2, 0.4 + 2.5 * each * len(clouds)), layout="constrained")
    grid = figure.subplots(each * len(clouds), columns, sharey=True, squeeze=False)
    for cloud, rows in zip(clouds, np.split(grid, len(clouds)), strict=True):
        best = best_of(cloud, summary.metric)
        for axes, key, name in zip(rows.flat, keys, short(keys), strict=False):
            order = [text_of(value) for value in summary.sweep.space[key].values or ()] if summary.sweep else []
            places = _cloud_ticks(axes, [cell.point[key] for cell in cloud], order)
            for cell, place in zip(cloud, places, strict=True):
                middle, error = of_metric(cell, summary.metric)
                color = TRAIN if cell.is_done else "#94a3b8"
                axes.errorbar(place, middle, yerr=error, fmt="o", color=color, ms=4.5, elinewidth=0.8, alpha=0.8)
                if cell is best:
                    axes.plot(place, middle, "o", ms=12, mfc="none", mec=TEST, mew=1.5, zorder=5)
            axes.set_xlabel(name)
            if summary.metric == "valid_error":
                as_errors(axes.yaxis, summary)
        for axes in rows.flat[len(keys) :]:
            axes.set_axis_off()
        rows[0, 0].set_title(cloud[0].arm)
        for axes in rows[:, 0]:
            axes.set_ylabel(summary.metric_in_words)
    return svg(figure)


def _cloud_ticks(axes: Axes, values: Sequence[Any], names: Sequence[str]) -> list[float]:
    """The positions of the values on the axis: numbers at their value, others side by side."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return list(_ticks(axes, [float(value) for value in values], _is_log(values, is_strength=False), most=4))
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return [float(names.index(text_of(value))) for value in values]
