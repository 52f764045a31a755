"""The report's pictures, as SVG."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.config import short, text_of
from experiments.summary import Cell, Mean, Summary, best_of, mean, of_metric, one_standard_error

TEST, TRAIN, VALID, PLAIN, INK, FAINT = "#c2410c", "#2563a8", "#0f766e", "#64748b", "#1e293b", "#e2e8f0"

_ERRORS = {"training error": ("train_error", TRAIN), "test error": ("test_error", TEST)}
_PATH_ERRORS = {**_ERRORS, "validation error": ("valid_error", VALID)}

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
    cells = [cell for cell in summary.chosen if cell.is_done]
    if not cells:
        return []
    with rc_context(_STYLE):
        pictures = [
            Picture("Where each arm ends", _ENDS + (_NOISE if summary.label_noise else ""), _ends(cells, summary)),
            Picture("How it got there", _CURVES, _curves(cells)),
        ]
        if paths := [path for path in summary.paths if any(cell.place for cell in path)]:
            pictures.append(Picture(f"Along the {_axis_of(paths)}", _PATHS, _paths(paths, summary)))
        if summary.clouds:
            pictures.append(
                Picture(
                    "Every point that was tried",
                    _CLOUDS.format(metric=summary.metric_in_words),
                    _clouds(summary.clouds, summary),
                )
            )
        if any(cell.results[0]["norms"] for cell in cells):  # else no weights to show
            pictures.append(Picture("The weights", _HISTOGRAMS, _histograms(cells)))
            pictures.append(Picture("Layer by layer", _LAYERS, _layers(cells)))
    return pictures


_ENDS = "Training error (open) and test error (filled), mean over seeds with one standard error; between them the gap."
_NOISE = " The dotted line is the share of wrong training labels: an arm to the left of it has learned some by heart."
_CURVES = "Training and test error after each epoch, mean over seeds with one standard error, without the steep start."
_PATHS = (
    "Errors, the norm of each layer's weights, and the share of exact zeros, mean over seeds with one standard error."
)
_CLOUDS = "Each dot is a point, at one of its values and its {metric}. The ring marks the best, gray dots were pruned."
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
            epochs = zip(*(history[:length] for history in cell.histories), strict=True)
            errors = [mean([row[key] for row in rows]) for rows in epochs]
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


def _axis_of(paths: Sequence[Sequence[Cell]]) -> str:
    names = {short(path[0].point)[0] for path in paths}
    return names.pop() if len(names) == 1 else "strength"


def _paths(paths: Sequence[Sequence[Cell]], summary: Summary) -> Markup:
    """From top to bottom errors, norms and zeros, from left to right the arms; down a column the axis is the same."""
    has_zeros = any(cell.mean("zeros").mean for path in paths for cell in path)
    rows = 3 if has_zeros else 2
    figure = Figure(figsize=(9.2, 0.6 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, len(paths), sharex="col", sharey="row", squeeze=False)
    for column, path in zip(grid.T, paths, strict=True):
        values = [float(cell.place or 0.0) for cell in path]
        places = _ticks(column[-1], values, _is_log(values, path[0].is_strength), room=9 // len(paths))
        _path_of_errors(column[0], places, path, summary)
        _path_of_layers(column[1], places, path, "norms")
        if has_zeros:
            _path_of_layers(column[2], places, path, "sparsity")
            _band(column[2], places, [cell.mean("zeros") for cell in path], INK, "all weights", marker="o")
        _mark(column, places, path, summary)
        column[0].set_title(path[0].arm, pad=18)
        column[-1].set_xlabel(short(path[0].point)[0])
    for axes, label in zip(grid[:, 0], ("error", "norm of the weights", "exact zeros"), strict=False):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    grid[0, 0].set_ylim(0, _path_top(paths, summary))
    for row, is_last in ((grid[0], False), (grid[-1], True)):  # the last has a line for each layer, as those above it
        named = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in row]
        lines = {label: line for one in named for label, line in one.items()}
        if len(lines) <= 10:
            corner: Literal["outside lower center", "outside upper right"]
            corner = "outside lower center" if is_last else "outside upper right"
            figure.legend(list(lines.values()), list(lines), loc=corner, ncols=5)
    return _svg(figure)


def _path_top(paths: Sequence[Sequence[Cell]], summary: Summary) -> float:
    """The largest error on the axis: twice what there is at the start and at the best; far too strong is beyond."""
    near = [cell for path in paths for cell in (path[0], best_of(path, summary.metric)) if cell is not None]
    near_top, top = (
        max(cell.mean(key).mean for cell in cells for key, _ in _PATH_ERRORS.values())
        for cells in (near, [cell for path in paths for cell in path])
    )
    return min(2 * near_top, 1.05 * top) or 1.0


def _path_of_errors(axes: Axes, places: np.ndarray, path: Sequence[Cell], summary: Summary) -> None:
    for name, (key, color) in _PATH_ERRORS.items():
        _band(axes, places, [of_metric(cell, key) for cell in path], color, name, marker="o")
    if summary.plain is not None:
        level = summary.plain.mean("test_error").mean
        axes.axhline(level, color=TEST, linestyle="--", linewidth=1, label="test, unregularized", zorder=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _path_of_layers(axes: Axes, places: np.ndarray, path: Sequence[Cell], key: str) -> None:
    """A line for each layer."""
    layers = list(path[0].results[0][key])
    for i, layer in enumerate(layers):
        means = [mean([result[key][layer] for result in cell.results]) for cell in path]
        _band(axes, places, means, colormaps["viridis"](0.85 * i / max(len(layers) - 1, 1)), layer, marker="o")
    if key == "sparsity":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _mark(column: Sequence[Axes], places: np.ndarray, path: Sequence[Cell], summary: Summary) -> None:
    """A line down the column at the best value, and one at the strongest within one standard error of it."""
    best = best_of(path, summary.metric)
    assert best is not None
    strongest = one_standard_error(path, best, summary.metric) if best.is_strength else best
    marks = {"best": best} if strongest is best else {"best": best, "one SE": strongest}
    for name, cell in marks.items():
        place = places[path.index(cell)]
        for axes in column:
            axes.axvline(place, color=INK, linestyle=":", linewidth=1.2, zorder=1)
        is_apart = len(marks) == 1 or place in (places[0], places[-1])  # else the two texts must make way
        side = "center" if is_apart else "right" if cell is best else "left"
        beside: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": side, "fontsize": 9}
        column[0].annotate(f"{name}: {cell.place:.3g}", (place, 1), xycoords=("data", "axes fraction"), **beside)


def _ticks(axes: Axes, values: Sequence[float], is_log: bool, room: int) -> np.ndarray:
    """Where the values are on the axis: on a logarithmic one a 0 is half a decade before the smallest."""
    if not is_log:
        return np.array(values)
    smallest, largest = min(value for value in values if value > 0), max(values)
    places = np.array([np.log10(value) if value > 0 else np.log10(smallest) - 0.5 for value in values])
    decades = range(math.ceil(np.log10(smallest) - 1e-9), math.floor(np.log10(largest) + 1e-9) + 1)
    if len(set(values)) <= room:
        ticks = {place: f"{value:.3g}" for place, value in zip(places, values, strict=True)}
    elif len(decades) < 2:
        ticks = {np.log10(value): f"{value:.2g}" for value in (smallest, largest)}
    else:
        ticks = {float(decade): f"{10.0**decade:g}" for decade in decades[:: -(-len(decades) // room)]}
        ticks |= {place: "0" for place, value in zip(places, values, strict=True) if value == 0}
    axes.set_xticks(list(ticks), list(ticks.values()))
    return places


def _is_log(values: Sequence[float], is_strength: bool) -> bool:
    positive = [value for value in values if value > 0]
    if is_strength:
        return bool(positive)
    return len(positive) == len(values) and max(values) > 20 * min(values)


def _clouds(clouds: Sequence[Sequence[Cell]], summary: Summary) -> Markup:
    """For each arm and key the metric against the value."""
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
                figure_, error = of_metric(cell, summary.metric)
                color = TRAIN if cell.is_done else "#94a3b8"
                axes.errorbar(
                    place, figure_, yerr=error, fmt="o", color=color, markersize=4.5, elinewidth=0.8, alpha=0.8
                )
                if cell is best:
                    axes.plot(place, figure_, "o", ms=12, mfc="none", mec=TEST, mew=1.5, zorder=5)
            axes.set_xlabel(name)
            if summary.metric == "valid_error":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in rows.flat[len(keys) :]:
            axes.set_axis_off()
        rows[0, 0].set_title(cloud[0].arm)
        for axes in rows[:, 0]:
            axes.set_ylabel(summary.metric_in_words)
    return _svg(figure)


def _cloud_ticks(axes: Axes, values: Sequence[Any], names: Sequence[str]) -> list[float]:
    """Where the values are on the axis: numbers at their own place, others side by side."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return list(_ticks(axes, [float(value) for value in values], _is_log(values, is_strength=False), room=4))
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return [float(names.index(text_of(value))) for value in values]


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


def _band(axes: Axes, x: np.ndarray, means: Sequence[Mean], color: Any, label: str, marker: str = "") -> None:
    """Means, with one standard error either side."""
    middle, error = np.array(means).T
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
