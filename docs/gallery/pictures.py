"""The gallery's pictures, one function for each kind, so that pages compare.

Every panel is a figure of its own: panels stand side by side on a wide page and below each other on a narrow one.
Figures are drawn in mid-tones, which can be read on white and on black. :func:`scraper` gives the site two copies of
each, one for light pages and one for dark ones.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor, nn

from torchreg.optim import SGDW
from torchreg.penalties import Constraint, Penalty, ProximalPenalty

# The mid-tone that is drawn, and what it becomes on a light and on a dark page. The hues are those of Okabe and Ito,
# which people with any color vision tell apart.
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

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "axes.unicode_minus": True,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "torchreg",
}


def figure(description: str, width: float = 3.4, height: float = 2.9) -> Axes:
    """The axes of a new figure, which readers who do not see it are told of by the description."""
    plt.rcParams.update(STYLE)
    new, axes = plt.subplots(figsize=(width, height), layout="constrained")
    new.set_label(description)
    return axes


class Taught:
    """For sphinx-gallery's ``within_subsection_order``: the well-known first, and beside each what is like it."""

    ORDER = (
        *(
            "l1",
            "l2",
            "elastic_net",
            "huber",
            "lp",
            "log_sum",
            "mcp",
            "scad",
            "hoyer_square",
            "l2sp",
            "l1sp",
        ),
        *(
            "group_lasso",
            "sparse_group_lasso",
            "exclusive_lasso",
            "nuclear",
            "spectral_norm",
            "convolution_norm",
        ),
        *(
            "soft_orthogonality",
            "double_soft_orthogonality",
            "srip",
            "kl_sparsity",
            "complexity",
        ),
        *(
            "max_norm",
            "unit_norm",
            "non_negative",
            "simplex",
            "l1_ball",
            "l2_ball",
            "linf_ball",
        ),
        *(
            "dropout",
            "channels",
            "drop_block",
            "gaussian_dropout",
            "alpha_dropout",
            "feature_alpha_dropout",
        ),
        *(
            "stochastic_depth",
            "drop_connect",
            "locked_dropout",
            "embedding_dropout",
            "word_dropout",
        ),
        *("concrete_dropout", "variational_dropout", "hard_concrete"),
        *(
            "lr",
            "schedule",
            "independent",
            "corrected",
            "decay_l1",
            "towards_start",
            "cautious",
        ),
    )

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return self.ORDER.index(Path(name).stem.removeprefix("plot_"))


def scraper(block: Any, variables: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """For sphinx-gallery's ``image_scrapers``: each open figure without text (its thumbnail), light and dark."""
    images = []
    for number, path in zip(plt.get_fignums(), variables["image_path_iterator"], strict=False):
        shown = plt.figure(number)
        text = drawing()
        for suffix, copy in {
            "": silent(text),
            "_light": shaded(text, 0),
            "_dark": shaded(text, 1),
        }.items():
            Path(path).with_name(Path(path).stem + suffix).with_suffix(".svg").write_text(copy)
        place = Path(path).relative_to(config["src_dir"]).with_suffix("").as_posix()
        images += [
            f".. image:: /{place}_{name}.svg\n   :alt: {shown.get_label()}\n   :class: only-{name}\n"
            for name in ("light", "dark")
        ]
    plt.close("all")
    row = '<div style="display: flex; flex-wrap: wrap; justify-content: center; gap: 0.5rem 1rem; margin: 1rem 0">'
    return "\n".join([raw(row), *images, raw("</div>")]) if images else ""


def raw(html: str) -> str:
    return f".. raw:: html\n\n   {html}\n"


def drawing() -> str:
    """The current figure as SVG."""
    text = io.StringIO()
    plt.gcf().savefig(text, format="svg", dpi=200, metadata={"Date": None})
    return text.getvalue()


def silent(svg: str) -> str:
    """A figure without its text, which cannot be read at the size of a thumbnail."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.get("id", "").startswith("text_"):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def shaded(svg: str, page: int) -> str:
    """A figure in the colors of a light page (0) or a dark one (1)."""
    return re.sub("|".join(SHADES), lambda found: SHADES[found[0]][page], svg)


# -- one weight -------------------------------------------------------------------------------------------------------


def curves(penalties: Penalty | Mapping[str, Penalty], panels: int = 3) -> None:
    """Value, gradient and proximal operator (step 1) of one weight."""
    named = {"": penalties} if isinstance(penalties, Penalty) else penalties
    w = torch.linspace(-3, 3, 1201)
    each = w.view(-1, 1, 1)
    kinds: dict[str, tuple[Callable[[Any], Tensor], tuple[float, float]]] = {
        "value $R(w)$": (lambda penalty: torch.vmap(penalty.value)(each), (-0.15, 4.15)),
        "gradient $R'(w)$": (lambda penalty: torch.vmap(penalty.gradient)(each), (-2.15, 2.15)),
        "prox of $w$": (
            lambda penalty: torch.vmap(lambda x: penalty.prox(x, 1.0))(each),
            (-3, 3),
        ),
    }
    for title, (compute, limits) in list(kinds.items())[:panels]:
        axes = figure(
            f"{title} of one weight w, for {', '.join(map(repr, named.values()))}", 2.35, 2.3
        )
        axes.axhline(0, color=FAINT, linewidth=0.7)
        axes.axvline(0, color=FAINT, linewidth=0.7)
        if title.startswith("prox"):
            axes.plot(w, w, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        ends = []
        for (name, penalty), color in zip(named.items(), HUES, strict=False):
            y = compute(penalty).flatten()
            jumps = (y.diff().abs() > 0.1).nonzero().flatten()
            axes.plot(w, y.index_fill(0, jumps + 1, torch.nan), color=color)
            for k in jumps.tolist():
                axes.plot(w[k : k + 3], y[k : k + 3], color=color, linewidth=0.9)
            ends.append((name, color, y[-1].item()))
        axes.set(xlim=(-3, 3), ylim=limits, title=title, xticks=(-2, 0, 2), xlabel="$w$")
        _label_ends(axes, [end for end in ends if end[0]])


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]], gap: float = 0.085) -> None:
    """Writes the names of lines ``(name, color, y)`` at their right ends, from the top, apart from each other."""
    low, high = axes.get_ylim()
    heights = [gap * (1 + name.count("\n")) for name, _, _ in ends]
    below, ceiling = sum(heights), 1 + gap / 2
    for (name, color, y), height in sorted(
        zip(ends, heights, strict=True), key=lambda pair: -pair[0][2]
    ):
        below -= height
        at = min(max((y - low) / (high - low), below), ceiling - height / 2)
        axes.text(
            1.02, at, name, color=color, transform=axes.transAxes, va="center", fontsize=8
        )
        ceiling = at - height / 2


# -- two weights ------------------------------------------------------------------------------------------------------

CORRELATED = torch.tensor([[1.0, 0.55], [0.55, 1.0]])
LEAST = torch.tensor([1.55, 0.75])  # where the loss of the two weights is least


def row(two: Tensor) -> Tensor:
    """Two numbers as the weights of one output unit."""
    return two.unsqueeze(-2)


def diagonal(two: Tensor) -> Tensor:
    """Two numbers as the singular values of a matrix."""
    return torch.diag_embed(two)


def plane(
    make: Callable[[float], Penalty],
    weight: Callable[[Tensor], Tensor] = row,
    through: Sequence[tuple[float, float]] = ((0.4, 0), (0.8, 0), (1.2, 0), (1.6, 0), (2.0, 0)),
    strength: float = 1.0,
    steps: int = 100,
) -> None:
    """Level sets over two weights, or two singular values, and the way of a minimum as the strength grows.

    Args:
        make: the penalty of a strength.
        weight: what makes a weight of two numbers.
        through: points, one on each level set that is drawn.
        strength: of the level sets.
        steps: strengths along the way.
    """
    penalty = make(strength)
    symbols = ("$w_1$", "$w_2$") if weight is row else (r"$\sigma_1$", r"$\sigma_2$")
    axes = figure(
        f"Level sets of {penalty!r} over two {'weights' if weight is row else 'singular values'}, and how the minimum "
        "of a loss with this penalty moves as the strength grows"
    )
    side = torch.linspace(-2, 2, 201)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    values = torch.vmap(torch.vmap(penalty.value))(weight(points))
    for level in sorted(
        {round(float(penalty.value(weight(torch.tensor(point)))), 5) for point in through}
    ):
        axes.contourf(side, side, values, [-np.inf, level], colors=[BLUE], alpha=0.1)
        axes.contour(side, side, values, [level], colors=[BLUE], linewidths=1)
    away = points - LEAST
    losses = (away @ CORRELATED * away).sum(-1) / 2
    axes.contour(
        side, side, losses, [0.1, 0.4, 1.0], colors=[FAINT], linewidths=0.8, linestyles="dashed"
    )
    way = torch.stack([LEAST, *_minima(make, weight, steps)])
    axes.plot(*way.T, color=ORANGE, linewidth=2.2)
    axes.plot(*way[0], "o", color=ORANGE, markersize=5)
    axes.text(way[0][0] + 0.07, way[0][1] + 0.1, "$s = 0$", color=ORANGE)
    axes.plot(*way[-1], "o", color=ORANGE, markersize=5, markerfacecolor="none", clip_on=False)
    axes.set(
        xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=range(-2, 3), yticks=range(-2, 3)
    )
    axes.set(title="level sets, and the minimum along $s$", xlabel=symbols[0])
    axes.set_ylabel(symbols[1], rotation=0)


def _minima(
    make: Callable[[float], Penalty], weight: Callable[[Tensor], Tensor], steps: int
) -> list[Tensor]:
    def gradient(w: Tensor) -> Tensor:
        two = w[0] if weight is row else w.diagonal()
        return weight((two - LEAST) @ CORRELATED)

    found = follow(
        make, gradient, weight(LEAST), torch.logspace(-2.5, 1.5, steps).tolist(), 1.6
    )
    return [w[0] if weight is row else w.diagonal() for w in found]


# -- regressions ------------------------------------------------------------------------------------------------------


def follow(
    make: Callable[[float], Penalty],
    gradient: Callable[[Tensor], Tensor],
    w: Tensor,
    strengths: Sequence[float],
    curvature: float,
    iterations: int = 60,
) -> list[Tensor]:
    """The minima of loss + penalty from one strength to the next: by proximal steps, or by gradient steps.

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


TRUTH = torch.tensor([3.0, -2.0, 1.5, 1.0, 0, 0, 0, 0, 0, 0, 0, 0])
TWINS = torch.tensor(
    [1.5, -2.0, 1.5, 1.0, 0, 0, 0, 0, 0, 0, 0, 0]
)  # the third input is nearly the first
TRIPLES = (
    torch.arange(12).view(1, 12) // 3
)  # groups of three inputs: all in use, one in use, none, none


@cache
def regression(twins: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrix, correlation with the targets, least squares fit: 60 examples, 12 inputs, of which 4 are in use."""
    draw = torch.Generator().manual_seed(188)
    inputs = torch.randn(60, 12, generator=draw)
    if twins:
        inputs[:, 2] = inputs[:, 0] + 0.2 * torch.randn(60, generator=draw)
    targets = inputs @ (TWINS if twins else TRUTH) + 1.5 * torch.randn(60, generator=draw)
    gram, correlation = inputs.T @ inputs / 60, inputs.T @ targets / 60
    return gram, correlation, torch.linalg.solve(gram, correlation)


def coefficients(
    make: Callable[[float], Penalty],
    *,
    title: str = "coefficients of a regression",
    twins: bool = False,
    groups: bool = False,
    towards: Tensor | None = None,
    bounds: Sequence[float] = (),
    count: int = 61,
) -> None:
    """The coefficients of a small regression along the strength, with marks at the true ones.

    Args:
        make: the penalty of a strength, or the constraint of a bound.
        title: above.
        twins: takes the regression with two inputs that are nearly the same.
        groups: gives each group of three inputs a color.
        towards: a reference to mark at the right.
        bounds: of a constraint, from the largest to the smallest, instead of strengths.
        count: how many strengths.
    """
    gram, correlation, fit = regression(twins)
    strengths = list(bounds) if len(bounds) else np.logspace(-2, 1, count).tolist()
    curvature = torch.linalg.eigvalsh(gram).max().item()
    minima = follow(
        make, lambda w: w @ gram - correlation, fit.view(1, -1), strengths, curvature
    )
    axes = _along(
        strengths,
        len(bounds) > 0,
        title,
        f"Coefficients of a regression, for {make(strengths[0])!r} and on",
    )
    truth = TWINS if twins else TRUTH
    for number in reversed(range(12)):
        path = [w[0, number].item() for w in minima]
        color = HUES[int(TRIPLES[0, number])] if groups else (BLUE if truth[number] else ORANGE)
        if twins and number in (0, 2):
            color = GREEN
        axes.plot(strengths, path, color=color, linewidth=1.8 if truth[number] else 1.1)
    _mark(axes, truth[truth != 0], -0.045)
    if towards is not None:
        _mark(axes, towards.unique(), 1.01)
    axes.set(ylim=(-2.9, 3.9))
    if groups:
        _label_ends(axes, [(f"group {k + 1}", HUES[k], 3.7 - 0.1 * k) for k in range(4)])
    else:
        axes.text(
            0.02,
            0.98,
            "true coefficient not 0",
            color=BLUE,
            transform=axes.transAxes,
            va="top",
            fontsize=8,
        )
        if twins:
            axes.text(
                0.98,
                0.98,
                "nearly equal inputs",
                color=GREEN,
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=8,
            )
        axes.text(
            0.02,
            0.3,
            "true coefficient 0",
            color=ORANGE,
            transform=axes.transAxes,
            va="top",
            fontsize=8,
        )


def _along(strengths: Sequence[float], bounded: bool, title: str, description: str) -> Axes:
    axes = figure(description)
    axes.axhline(0, color=FAINT, linewidth=0.7)
    axes.set(
        xlim=(strengths[0], strengths[-1]),
        title=title,
        xlabel="bound" if bounded else "strength (log scale)",
    )
    if not bounded:
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        axes.minorticks_off()
    axes.spines["left"].set_position(("outward", 12))
    return axes


def _mark(axes: Axes, values: Tensor, at: float) -> None:
    """Short strokes beside the axes at the values that were to be found."""
    for value in values.tolist():
        place = axes.get_yaxis_transform()
        axes.plot(
            [at, at + 0.035],
            [value] * 2,
            color=INK,
            clip_on=False,
            transform=place,
            solid_capstyle="butt",
        )


@cache
def several_outputs() -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`regression`, with 8 inputs and 8 outputs whose true weights have singular values 3, 2, 1 and zeros."""
    draw = torch.Generator().manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(8, 8, generator=draw))
    inputs = torch.randn(60, 8, generator=draw)
    truth = left[:, :3] * torch.tensor([3.0, 2.0, 1.0]) @ right[:3]
    targets = inputs @ truth.T + 0.8 * torch.randn(60, 8, generator=draw)
    gram, correlation = inputs.T @ inputs / 60, targets.T @ inputs / 60
    return gram, correlation, torch.linalg.solve(gram, correlation.T).T


def singular_values(make: Callable[[float], Penalty]) -> None:
    """The singular values of the weights of a regression with 8 inputs and 8 outputs, along the strength."""
    gram, correlation, fit = several_outputs()
    strengths = np.logspace(-2, 1, 31).tolist()
    curvature = torch.linalg.eigvalsh(gram).max().item()
    minima = follow(make, lambda w: w @ gram - correlation, fit, strengths, curvature)
    axes = _along(
        strengths,
        False,
        "singular values of a regression",
        f"Singular values along the strength, {make(1)!r}",
    )
    paths = torch.stack([torch.linalg.svdvals(w) for w in minima])
    for number in reversed(range(8)):
        axes.plot(
            strengths,
            paths[:, number],
            color=BLUE if number < 3 else ORANGE,
            linewidth=1.8 if number < 3 else 1.1,
        )
    _mark(axes, torch.tensor([3.0, 2.0, 1.0]), -0.045)
    axes.set(ylim=(-0.1, 3.6))


def fitted(penalty: Penalty) -> Tensor:
    """The weights of the regression with 8 outputs under a penalty."""
    gram, correlation, fit = several_outputs()
    curvature = torch.linalg.eigvalsh(gram).max().item()
    strengths = [penalty.strength * scale for scale in (0.01, 0.03, 0.1, 0.3, 1.0)]
    make = partial(replace, penalty)
    return follow(
        lambda s: make(strength=s),
        lambda w: w @ gram - correlation,
        fit,
        strengths,
        curvature,
        100,
    )[-1]


# -- matrices and images ----------------------------------------------------------------------------------------------


def matrix(
    values: Tensor,
    title: str,
    *,
    dropped: Tensor | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    most: float | None = None,
    size: tuple[float, float] = (2.2, 2.4),
    xlabel: str = "",
    ylabel: str = "",
) -> None:
    """Numbers as cells: blue above 0, orange below, the paler the smaller. What is dropped is a solid orange.

    Args:
        values: of two dimensions.
        title: above.
        dropped: where something was dropped.
        rows: names.
        columns: names.
        most: the magnitude of a solid cell; by default the largest.
        size: of the figure, in inches.
        xlabel: below.
        ylabel: at the left.
    """
    axes = figure(title, *size)
    values = values.detach().float()
    strength = (
        (values.abs() / (most or values.abs().max().clamp(min=1e-12))).clamp(max=1).numpy()
    )
    cells = np.zeros((*values.shape, 4))
    cells[..., :3] = np.where((values < 0).numpy()[..., None], to_rgb(ORANGE), to_rgb(BLUE))
    cells[..., 3] = strength
    if dropped is not None:
        cells[dropped.numpy()] = (*to_rgb(ORANGE), 1)
    axes.imshow(
        cells,
        interpolation="nearest",
        aspect="auto" if rows or columns or size[0] > 3 else "equal",
    )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _frame(axes)


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.7)


def weights() -> Tensor:
    """The weights of 6 output units with 8 inputs, some of them large and some small."""
    draw = torch.Generator().manual_seed(5)
    return torch.randn(6, 8, generator=draw) * torch.tensor(
        [1.4, 0.25, 0.9, 0.15, 0.6, 0.35]
    ).view(6, 1)


def before_and_after(penalties: Mapping[str, ProximalPenalty], step: float = 1.0) -> None:
    """A matrix of weights, and what the proximal operator of each penalty makes of it."""
    most = weights().abs().max().item()
    words = {"xlabel": "inputs", "ylabel": "output units", "most": most}
    matrix(weights(), "weights", **words)
    for title, penalty in penalties.items():
        matrix(penalty.prox(weights(), step), title, **words)


@cache
def photo(side: int = 56) -> Tensor:
    """A photograph of a flower, ``(3, side, side)``, in [0, 1]."""
    whole = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1).float() / 255
    return nn.functional.interpolate(
        whole[None, :, 40:400, 150:510], size=(side, side), mode="area"
    )[0]


@cache
def feature_maps() -> Tensor:
    """Eight maps ``(8, 40, 40)`` that a convolution could make of the photograph: edges of all directions."""
    angles = torch.arange(8) * torch.pi / 4
    across, down = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="xy")
    kernels = angles.cos().view(8, 1, 1) * across + angles.sin().view(8, 1, 1) * down
    edges = nn.functional.conv2d(photo(42).mean(0)[None, None], kernels.unsqueeze(1)).relu()[0]
    return edges / edges.max()


def picture(
    image: Tensor,
    title: str,
    *,
    dropped: Tensor | None = None,
    white: float = 1.0,
    black: float = 0.0,
) -> None:
    """An image ``(C, H, W)`` or ``(H, W)`` in gray or color, with what was dropped in orange."""
    axes = figure(title, 1.72, 1.9)
    image = image.detach()
    shown = ((image if image.ndim == 2 else image.movedim(0, -1)) - black) / (white - black)
    shown = (
        shown.clamp(0, 1)
        if shown.ndim == 3
        else shown.clamp(0, 1).unsqueeze(-1).expand(-1, -1, 3)
    )
    shown = shown.clone()
    if dropped is not None:
        shown[dropped] = torch.tensor(to_rgb(ORANGE))
    axes.imshow(shown.numpy(), interpolation="nearest")
    axes.set(xticks=(), yticks=(), title=title)
    _frame(axes)


def drawn(layer: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A layer's output, and where it dropped: where it gives to ones the least of what it gives to them."""
    torch.manual_seed(seed)
    output = layer(x)
    torch.manual_seed(seed)
    ones = layer(torch.ones_like(x))
    return output.detach(), ones == ones.min()


def masks(
    layer: nn.Module, image: Tensor | None = None, *, drops: bool = True, mean_of: int = 400
) -> None:
    """A gray image before a layer, two draws after it, and the mean of many draws."""
    image = photo().mean(0) if image is None else image
    batch = image[None, None]
    draws = [drawn(layer, batch, seed) for seed in range(2)]
    mean = torch.stack([layer(batch)[0, 0] for _ in range(mean_of)]).mean(0)
    kept = torch.cat(
        [output[~dropped] if drops else output.flatten() for output, dropped in draws]
    )
    tones = {
        "white": max(kept.quantile(0.99).item(), image.max().item()),
        "black": image.min().item(),
    }
    picture(image, "input", **tones)
    for number, (output, dropped) in enumerate(draws, start=1):
        picture(
            output[0, 0], f"draw {number}", dropped=dropped[0, 0] if drops else None, **tones
        )
    picture(mean, f"mean of {mean_of} draws", **tones)


def montage(
    images: Tensor,
    title: str,
    *,
    dropped: Tensor | None = None,
    white: float = 1.0,
    black: float = 0.0,
    height: float,
) -> None:
    """Images ``(rows, columns, H, W)`` beside each other, with what was dropped in orange."""
    axes = figure(title, 3.4, height)
    rows, columns, high, wide = images.shape
    gray = ((images - black) / (white - black)).clamp(0, 1)
    shown = torch.stack([gray, gray, gray, torch.ones_like(gray)], -1)
    if dropped is not None:
        shown[dropped.expand_as(images)] = torch.tensor([*to_rgb(ORANGE), 1.0])
    canvas = torch.zeros(rows * (high + 2) - 2, columns * (wide + 2) - 2, 4)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (high + 2), j * (wide + 2)
            canvas[top : top + high, left : left + wide] = shown[i, j]
    axes.imshow(canvas.numpy(), interpolation="nearest")
    axes.set(xticks=(), yticks=(), title=title)
    for spine in axes.spines.values():
        spine.set_visible(False)


def digit_weights(weights: Tensor, title: str) -> None:
    """The weights of a linear classifier of digits, ten images of 8 x 8 pixels."""
    rows = nn.functional.pad(weights.detach().view(2, 5, 8, 8), (0, 1, 0, 1))
    grid = rows.permute(0, 2, 1, 3).reshape(18, 45)[:-1, :-1]
    matrix(grid, title, size=(3.4, 1.9))
    axes = plt.gca()
    axes.set_aspect("equal")
    for edge in (8, 17, 26, 35):
        axes.axvline(edge, color=FAINT, linewidth=0.7)
    axes.axhline(8, color=FAINT, linewidth=0.7)


SENTENCE = ["the", "cat", "saw", "the", "dog", "and", "the", "dog", "saw", "the", "bird"]


@cache
def tokens() -> tuple[Tensor, Tensor]:
    """The sentence as numbers of words, and as vectors of 24 features that are not negative."""
    words = sorted(set(SENTENCE))
    numbers = torch.tensor([words.index(word) for word in SENTENCE])
    vectors = 0.15 + 0.85 * torch.rand(
        len(words), 24, generator=torch.Generator().manual_seed(0)
    )
    return numbers, vectors[numbers]


def sequence(values: Tensor, title: str, dropped: Tensor | None = None) -> None:
    """A sentence, one row a word, one column a feature."""
    words = {"rows": SENTENCE, "size": (2.35, 2.4), "xlabel": "features"}
    most = 1.0 if dropped is None else values[~dropped].max().item()
    matrix(values, title, dropped=dropped, most=most, **words)


def sentences(draws: Mapping[str, Sequence[str]], replaced: str) -> None:
    """Sentences beside each other, one row a word, with a word that stands for others in orange."""
    axes = figure(
        "; ".join(f"{name}: {' '.join(words)}" for name, words in draws.items()),
        0.8 * len(draws),
        2.6,
    )
    for column, (name, words) in enumerate(draws.items()):
        axes.text(column, -1.3, name, ha="center", va="center")
        for place, word in enumerate(words):
            color = ORANGE if word == replaced else FAINT
            axes.text(
                column, place, word, ha="center", va="center", color=color, gid="word"
            )  # which thumbnails keep
    axes.set(xlim=(-0.5, len(draws) - 0.5), ylim=(len(SENTENCE) - 0.5, -1.8))
    axes.axis("off")


# -- training ---------------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1797 images of 64 pixels in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16).float(), torch.tensor(labels)


def train(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    regularizer: Any = None,
    lr: float = 0.01,
    steps: int = 200,
    watch: Callable[[], float] | None = None,
) -> list[float]:
    """Steps of Adam; returns what was watched."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    if regularizer is not None:
        regularizer.attach(optimizer)
    watched = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if watch is not None:
            watched.append(watch())
    model.eval()
    return watched


# -- constraints ------------------------------------------------------------------------------------------------------


def projections(constraint: Constraint, weight: Callable[[Tensor], Tensor] = row) -> None:
    """The set in two weights, and arrows from points to where the constraint takes them."""
    axes = figure(
        f"The set of {constraint!r} in two weights, and the projections of points onto it"
    )
    side = torch.linspace(-2, 2, 401)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    project = torch.vmap(torch.vmap(lambda two: constraint.prox(weight(two), 1.0)))
    away = (project(points) - weight(points)).flatten(2).norm(dim=-1)
    axes.contourf(side, side, away, [-1, 0.004], colors=[BLUE], alpha=0.25)
    axes.contour(side, side, away, [0.004], colors=[BLUE], linewidths=1.6)
    grid = torch.linspace(-1.7, 1.7, 5)
    for start in torch.cartesian_prod(grid, grid):
        end = constraint.prox(weight(start), 1.0).flatten()
        if (end - start).norm() > 0.02:
            axes.annotate(
                "",
                end.tolist(),
                start.tolist(),
                arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 0.9},
            )
            axes.plot(*end, "o", color=ORANGE, markersize=2.5)
    axes.set(
        xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=range(-2, 3), yticks=range(-2, 3)
    )
    axes.set(title="the set, and projections onto it", xlabel="$w_1$")
    axes.set_ylabel("$w_2$", rotation=0)


def compare(constraint: Constraint, title: str) -> None:
    """The coefficients of a small regression by least squares, and within a set."""
    gram, correlation, fit = regression()
    curvature = torch.linalg.eigvalsh(gram).max().item()
    (within,) = follow(
        lambda _: constraint,
        lambda w: w @ gram - correlation,
        fit.view(1, -1),
        [1.0],
        curvature,
        500,
    )
    axes = figure(
        f"{title}: coefficients of a regression by least squares and with {constraint!r}"
    )
    axes.axhline(0, color=FAINT, linewidth=0.7)
    places = torch.arange(12)
    for name, values, shift, color in (
        ("least squares", fit, -0.15, ORANGE),
        (title, within[0], 0.15, BLUE),
    ):
        axes.vlines(places + shift, 0, values, color=color, linewidth=1)
        axes.plot(places + shift, values, "o", color=color, markersize=4)
        axes.text(
            0.98,
            0.97 if color == ORANGE else 0.89,
            name,
            color=color,
            ha="right",
            va="top",
            transform=axes.transAxes,
        )
    axes.set(
        xlabel="coefficient",
        xticks=places[::2],
        ylim=(-2.9, 3.9),
        title="coefficients of a regression",
    )


# -- couplings --------------------------------------------------------------------------------------------------------

COUPLINGS = ("lr", "schedule", "independent", "corrected")
STEPS = 200
RATES = {
    "constant learning rate": lambda step: 1.0,
    "learning rate falls in steps": lambda step: 0.1 ** (2 * step // STEPS),
    "cosine learning rate": lambda step: 0.5 + 0.5 * math.cos(math.pi * step / STEPS),
}


def decayed(
    rate: Callable[[int], float] = lambda step: 1.0,
    gradient: Callable[[float], float] = lambda w: 0.0,
    start: float = 1.0,
    lr: float = 0.5,
    weight_decay: float = 0.01,
    **form: Any,
) -> list[float]:
    """The path of one weight under SGDW with a gradient and a learning rate of ``lr`` times ``rate``."""
    weight = nn.Parameter(torch.tensor([start]))
    optimizer = SGDW([weight], lr=lr, weight_decay=weight_decay, **form)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    sizes = [start]
    for _ in range(STEPS):
        weight.grad = torch.full_like(weight, gradient(sizes[-1]))
        optimizer.step()
        scheduler.step()
        sizes.append(weight.item())
    return sizes


def couplings(shown: str) -> None:
    """What is left of a weight without a gradient, under three schedules; one coupling in blue, the others faint."""
    for title, rate in RATES.items():
        axes = figure(
            f"A weight without a gradient by steps, {title}, with each coupling", 2.35, 2.3
        )
        ends: dict[float, str] = {}
        for coupling in (*(each for each in COUPLINGS if each != shown), shown):
            sizes = decayed(rate, coupling=coupling)
            axes.plot(
                sizes,
                color=BLUE if coupling == shown else FAINT,
                linewidth=2.2 if coupling == shown else 1.2,
            )
            end = round(sizes[-1], 3)
            ends[end] = coupling if end not in ends else f"{coupling},\n{ends[end]}"
        axes.set(
            title=title,
            xlabel="step",
            xlim=(0, STEPS),
            ylim=(0, 1.05),
            xticks=(0, 100, 200),
            yticks=(0, 0.5, 1),
        )
        _label_ends(
            axes, [(name, BLUE if shown in name else FAINT, end) for end, name in ends.items()]
        )


# -- anything else ----------------------------------------------------------------------------------------------------


def histogram(title: str, values: Tensor, color: str = BLUE) -> None:
    """The shares of values from -1 to 3."""
    axes = figure(title, 3.3, 2.3)
    weights = np.full(values.numel(), 100 / values.numel())
    axes.hist(values.numpy(), 41, range=(-1.05, 3.05), weights=weights, color=color, alpha=0.8)
    axes.set(title=title, xlim=(-1.05, 3.05), ylabel="share, %")


def lines(
    title: str,
    series: Mapping[str, tuple[Any, Any]],
    *,
    size: tuple[float, float] = (3.4, 2.9),
    colors: Sequence[str] = HUES,
    labels: bool = True,
    **settings: Any,
) -> Axes:
    """Lines with their names at their ends.

    Args:
        title: above.
        series: x and y of each line, under its name.
        size: of the figure, in inches.
        colors: one for each line.
        labels: whether the names are written.
        settings: of the axes.
    """
    axes = figure(f"{title}: {', '.join(series)}", *size)
    for (x, y), color in zip(series.values(), colors, strict=False):
        axes.plot(x, y, color=color)
    axes.locator_params(nbins=5)
    axes.set(title=title, **settings)
    axes.margins(x=0)
    if labels:
        ends = [
            (name, color, float(y[-1]))
            for (name, (_, y)), color in zip(series.items(), colors, strict=False)
        ]
        _label_ends(axes, ends)
    return axes
