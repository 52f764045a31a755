"""Small regressions with known coefficients, along the strength of a penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pictures.style import BLUE, FAINT, GREEN, HUES, INK, ORANGE, figure, label_ends, write
from torchreg.penalties import Constraint, Penalty, ProximalPenalty

TRUTH = torch.tensor([3.0, -2.0, 1.5, 1.0, 0, 0, 0, 0, 0, 0, 0, 0])
TWINS = TRUTH.index_fill(
    0, torch.tensor([0, 2]), 1.5
)  # where the third input is nearly the first
TRIPLES = (
    torch.arange(12).view(1, 12) // 3
)  # groups of inputs: all in use, one in use, none, none
Make = Callable[[float], Penalty]


def follow(
    make: Make,
    gradient: Callable[[Tensor], Tensor],
    w: Tensor,
    strengths: Sequence[float],
    curvature: float,
    iterations: int = 60,
) -> list[Tensor]:
    """The minima of loss + penalty from one strength to the next, by proximal or gradient steps.

    Args:
        make: the penalty of a strength, or the constraint of a bound.
        gradient: the loss's.
        w: where to begin, which is the loss's minimum.
        strengths: one after another.
        curvature: the loss's largest.
        iterations: at most so many for each strength.
    """
    minima = []
    for strength in strengths:
        penalty = make(strength)
        for number in range(iterations):
            before = w
            if isinstance(penalty, ProximalPenalty):
                step = 1 / curvature
                w = penalty.prox(w - step * gradient(w), step)
            else:  # ever smaller steps, as the gradient may jump
                step = 1 / (curvature + 12 * strength * (1 + number / 10))
                w = w - step * (gradient(w) + penalty.gradient(w))
            if (w - before).abs().max() < 1e-3 * step:
                break
        minima.append(w)
    return minima


@dataclass(frozen=True)
class Regression:
    """Least squares of outputs (rows of the weights) on inputs."""

    inputs: Tensor
    targets: Tensor

    @property
    def gram(self) -> Tensor:
        return self.inputs.T @ self.inputs / len(self.inputs)

    @property
    def fit(self) -> Tensor:
        return torch.linalg.lstsq(self.inputs, self.targets).solution.T

    def minima(
        self, make: Make, strengths: Sequence[float], iterations: int = 60
    ) -> list[Tensor]:
        gram, fit = self.gram, self.fit
        curvature = torch.linalg.eigvalsh(gram).max().item()
        return follow(make, lambda w: (w - fit) @ gram, fit, strengths, curvature, iterations)


@cache
def one_output(twins: bool = False) -> Regression:
    """60 examples, 12 inputs, of which 4 are in use."""
    draw = torch.Generator().manual_seed(188)
    inputs = torch.randn(60, 12, generator=draw)
    if twins:
        inputs[:, 2] = inputs[:, 0] + 0.2 * torch.randn(60, generator=draw)
    targets = inputs @ (TWINS if twins else TRUTH) + 1.5 * torch.randn(60, generator=draw)
    return Regression(inputs, targets.unsqueeze(1))


@cache
def eight_outputs() -> Regression:
    """60 examples, 8 inputs; the true weights have the singular values 3, 2, 1 and zeros."""
    draw = torch.Generator().manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(8, 8, generator=draw))
    inputs = torch.randn(60, 8, generator=draw)
    truth = left[:, :3] * torch.tensor([3.0, 2.0, 1.0]) @ right[:3]
    return Regression(inputs, inputs @ truth.T + 0.8 * torch.randn(60, 8, generator=draw))


def coefficients(
    make: Make,
    *,
    title: str = "coefficients of a regression",
    twins: bool = False,
    groups: bool = False,
    towards: Tensor | None = None,
    bounds: Sequence[float] = (),
    count: int = 61,
) -> None:
    """The coefficients of a regression along the strength, with marks at the true ones.

    Args:
        make: the penalty of a strength, or the constraint of a bound.
        title: above.
        twins: takes the regression with two inputs that are nearly the same.
        groups: gives each group of three inputs a color.
        towards: a reference to mark at the right.
        bounds: of a constraint, from the largest to the smallest, instead of strengths.
        count: how many strengths.
    """
    truth, strengths = TWINS if twins else TRUTH, bounds or np.logspace(-2, 1, count).tolist()
    paths = torch.cat(one_output(twins).minima(make, strengths)).T
    axes = _along(strengths, title, f"{title}, from {make(strengths[0])!r} on", bool(bounds))
    axes.set(ylim=(-2.9, 3.9))
    for number in reversed(range(12)):
        color = BLUE if truth[number] else ORANGE
        if groups:
            color = HUES[number // 3]
        elif twins and number in (0, 2):
            color = GREEN
        axes.plot(strengths, paths[number], color=color, lw=1.8 if truth[number] else 1.1)
    _mark(axes, truth[truth != 0], -0.045)
    if towards is not None:
        _mark(axes, towards.unique(), 1.01)
    if groups:
        label_ends(axes, [(f"group {k + 1}", HUES[k], 3.7 - 0.1 * k) for k in range(4)])
    else:
        write(axes, 0.02, 0.98, "true coefficient not 0", BLUE, va="top")
        write(axes, 0.02, 0.3, "true coefficient 0", ORANGE, va="top")
    if twins:
        write(axes, 0.98, 0.98, "nearly equal inputs", GREEN, va="top", ha="right")


def singular_values(make: Make) -> None:
    """The singular values of the weights of a regression with eight outputs along the strength."""
    strengths = np.logspace(-2, 1, 31).tolist()
    paths = torch.linalg.svdvals(torch.stack(eight_outputs().minima(make, strengths))).T
    title = "singular values of a regression"
    axes = _along(strengths, title, f"{title}, from {make(strengths[0])!r} on")
    axes.set(ylim=(-0.1, 3.6))
    for number in reversed(range(8)):
        used = number < 3
        color, width = (BLUE, 1.8) if used else (ORANGE, 1.1)
        axes.plot(strengths, paths[number], color=color, lw=width)
    _mark(axes, torch.tensor([3.0, 2.0, 1.0]), -0.045)


def fitted(make: Make, strength: float) -> Tensor:
    """The weights of the regression with eight outputs under a penalty."""
    strengths = [strength * scale for scale in (0.01, 0.03, 0.1, 0.3, 1.0)]
    return eight_outputs().minima(make, strengths, iterations=100)[-1]


def compare(constraint: Constraint, title: str) -> None:
    """The coefficients of a regression by least squares, and within a set."""
    (within,) = one_output().minima(lambda bound: constraint, [1.0], iterations=500)
    axes = figure(f"Coefficients of a regression by least squares and with {constraint!r}")
    axes.axhline(0, color=FAINT, lw=0.7)
    both = {"least squares": (one_output().fit, ORANGE), title: (within, BLUE)}
    for number, (name, (values, color)) in enumerate(both.items()):
        places = torch.arange(12) + 0.3 * number - 0.15
        axes.vlines(places, 0, values[0], color=color, lw=1)
        axes.plot(places, values[0], "o", color=color, markersize=4)
        write(axes, 0.98, 0.97 - 0.08 * number, name, color, va="top", ha="right")
    axes.set(title="coefficients of a regression", xlabel="coefficient")
    axes.set(xticks=range(0, 12, 2), ylim=(-2.9, 3.9))


def _along(strengths: Sequence[float], title: str, text: str, bounded: bool = False) -> Axes:
    axes = figure(text)
    axes.axhline(0, color=FAINT, lw=0.7)
    axes.set(title=title, xlim=(strengths[0], strengths[-1]))
    axes.set_xlabel("bound" if bounded else "strength (log scale)")
    if not bounded:
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        axes.minorticks_off()
    axes.spines["left"].set_position(("outward", 12))
    return axes


def _mark(axes: Axes, values: Tensor, at: float) -> None:
    """Short strokes beside the axes at the values that were to be found."""
    beside = {"clip_on": False, "transform": axes.get_yaxis_transform()}
    for value in values.tolist():
        axes.plot([at, at + 0.035], [value] * 2, color=INK, solid_capstyle="butt", **beside)
