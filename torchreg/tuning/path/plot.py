"""A path of strengths as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchreg.tuning.path.selection import Point, best, one_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VALID, _TRAIN, _INK = "#c2410c", "#2563a8", "#1e293b"


def plot(path: Sequence[Point]) -> Figure:
    """Three plots against the strength: the loss with its standard error and the chosen points, norms, zeros."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("StrengthPath.plot: needs matplotlib: pip install matplotlib") from None
    marks = {"best": best(path), "one standard error": one_standard_error(path)}
    points = [point for point in path if not point.diverged]
    strengths = [point.strength for point in points]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    losses, norms, zeros = figure.subplots(1, 3)
    figures = {"training": [p.train_loss for p in points], "validation": [p.valid_loss for p in points]}
    for (name, values), color in zip(figures.items(), (_TRAIN, _VALID), strict=True):
        means, errors = zip(*values, strict=True)
        losses.plot(strengths, means, color=color, label=name)
        low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
        losses.fill_between(strengths, low, high, color=color, alpha=0.2, linewidth=0)
    for (name, point), style in zip(marks.items(), ("-", "--"), strict=True):
        for axes in (losses, norms, zeros):
            label = f"{name}: {point.strength:.3g}"
            axes.axvline(point.strength, color=_INK, linestyle=style, linewidth=1, label=label)
    losses.set(title="loss")
    for layer in points[0].norms:
        norms.plot(strengths, [point.norms[layer] for point in points], label=layer)
    norms.set(title="norm of the weights")
    zeros.plot(strengths, [100 * point.zeros for point in points], color=_TRAIN)
    zeros.set(title="weights that are exactly zero, %", ylim=(-3, 103))
    for axes in (losses, norms, zeros):
        axes.set(xscale="log", xlabel="strength")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e2e8f0")
    figure.legend(*losses.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    handles = [line for line in norms.get_lines() if not str(line.get_label()).startswith(("best", "one"))]
    norms.legend(handles=handles, frameon=False, fontsize=8)
    return figure
