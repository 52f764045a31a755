"""Penalties and constraints of one weight and of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pictures.regression import Make, follow
from pictures.style import BLUE, FAINT, HUES, ORANGE, figure, label_ends
from torchreg.penalties import Constraint, Penalty

CURVES = {  # what is drawn of a penalty, and from where to where
    "value $R(w)$": (lambda penalty: penalty.value, (-0.15, 4.15)),
    "gradient $R'(w)$": (lambda penalty: penalty.gradient, (-2.15, 2.15)),
    "prox of $w$": (lambda penalty: lambda w: penalty.prox(w, 1.0), (-3, 3)),
}
CORRELATED = torch.tensor([[1.0, 0.55], [0.55, 1.0]])  # curvature of the loss of two weights
LEAST = torch.tensor([1.55, 0.75])  # where that loss is least


def curves(penalties: Penalty | Mapping[str, Penalty], panels: int = 3) -> None:
    """Value, gradient and proximal operator (step 1) of one weight."""
    named = {"": penalties} if isinstance(penalties, Penalty) else penalties
    w = torch.linspace(-3, 3, 1201)
    for title, (function, limits) in list(CURVES.items())[:panels]:
        axes = figure(f"{title} for {', '.join(map(repr, named.values()))}", 2.35, 2.3)
        axes.axhline(0, color=FAINT, lw=0.7)
        axes.axvline(0, color=FAINT, lw=0.7)
        if title.startswith("prox"):
            axes.plot(w, w, color=FAINT, lw=1, linestyle=(0, (4, 3)))
        ends = []
        for (name, penalty), color in zip(named.items(), HUES, strict=False):
            y = torch.vmap(function(penalty))(w.view(-1, 1, 1)).flatten()
            jumps = (y.diff().abs() > 0.1).nonzero().flatten()
            axes.plot(w, y.index_fill(0, jumps + 1, torch.nan), color=color)
            for k in jumps.tolist():
                axes.plot(w[k : k + 3], y[k : k + 3], color=color, lw=0.9)
            ends += [(name, color, y[-1].item())] if name else []
        axes.set(xlim=(-3, 3), ylim=limits, title=title, xticks=(-2, 0, 2), xlabel="$w$")
        label_ends(axes, ends)


def row(two: Tensor) -> Tensor:
    """Two numbers as the weights of one output unit."""
    return two.unsqueeze(-2)


def diagonal(two: Tensor) -> Tensor:
    """Two numbers as the singular values of a matrix."""
    return torch.diag_embed(two)


def plane(
    make: Make,
    weight: Callable[[Tensor], Tensor] = row,
    through: Sequence[tuple[float, float]] = ((0.4, 0), (0.8, 0), (1.2, 0), (1.6, 0), (2.0, 0)),
    strength: float = 1.0,
    steps: int = 100,
) -> None:
    """Level sets over two weights or singular values, and the minimum as the strength grows.

    Args:
        make: the penalty of a strength.
        weight: what makes a weight of two numbers.
        through: points, one on each level set that is drawn.
        strength: of the level sets.
        steps: strengths along the way of the minimum.
    """
    penalty = make(strength)
    kind, symbol = ("weights", "w") if weight is row else ("singular values", r"\sigma")
    text = f"Level sets of {penalty!r} over two {kind}, and the minimum as the strength grows"
    axes, side, points = _square(text, "level sets, and the minimum along $s$", symbol, 201)
    values = torch.vmap(torch.vmap(penalty.value))(weight(points))
    levels = {round(penalty.value(weight(torch.tensor(point))).item(), 5) for point in through}
    for level in sorted(levels):
        axes.contourf(side, side, values, [-np.inf, level], colors=[BLUE], alpha=0.1)
        axes.contour(side, side, values, [level], colors=[BLUE], linewidths=1)
    away = points - LEAST
    losses = (away @ CORRELATED * away).sum(-1) / 2
    thin = {"colors": [FAINT], "linewidths": 0.8, "linestyles": "dashed"}
    axes.contour(side, side, losses, [0.1, 0.4, 1.0], **thin)

    def two(w: Tensor) -> Tensor:
        return w[0] if weight is row else w.diagonal()

    def gradient(w: Tensor) -> Tensor:
        return weight((two(w) - LEAST) @ CORRELATED)

    strengths = torch.logspace(-2.5, 1.5, steps).tolist()
    minima = follow(make, gradient, weight(LEAST), strengths, curvature=1.6)
    way = torch.stack([LEAST, *map(two, minima)])
    axes.plot(*way.T, color=ORANGE, lw=2.2)
    axes.plot(*way[0], "o", color=ORANGE, markersize=5)
    axes.plot(*way[-1], "o", color=ORANGE, markersize=5, markerfacecolor="none", clip_on=False)
    axes.text(way[0][0] + 0.07, way[0][1] + 0.1, "$s = 0$", color=ORANGE)


def projections(constraint: Constraint) -> None:
    """The set in two weights, and arrows from points to where the constraint takes them."""
    text = f"The set of {constraint!r} in two weights, and projections of points onto it"
    axes, side, points = _square(text, "the set, and projections onto it", "w", 401)
    nearest = torch.vmap(torch.vmap(constraint.project))(row(points)).squeeze(-2)
    away = (nearest - points).norm(dim=-1)
    axes.contourf(side, side, away, [-1, 0.004], colors=[BLUE], alpha=0.25)
    axes.contour(side, side, away, [0.004], colors=[BLUE], linewidths=1.6)
    grid = torch.linspace(-1.7, 1.7, 5)
    arrow = {"arrowstyle": "->", "color": ORANGE, "lw": 0.9}
    for start in torch.cartesian_prod(grid, grid):
        end = constraint.project(row(start))[0]
        if (end - start).norm() > 0.02:
            axes.annotate("", end.tolist(), start.tolist(), arrowprops=arrow)
            axes.plot(*end, "o", color=ORANGE, markersize=2.5)


def _square(text: str, title: str, symbol: str, count: int) -> tuple[Axes, Tensor, Tensor]:
    """Axes from -2 to 2, the numbers along a side of them, and the points of the square."""
    axes = figure(text)
    axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=title)
    axes.set(xticks=range(-2, 3), yticks=range(-2, 3), xlabel=f"${symbol}_1$")
    axes.set_ylabel(f"${symbol}_2$", rotation=0)
    side = torch.linspace(-2, 2, count)
    return axes, side, torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
