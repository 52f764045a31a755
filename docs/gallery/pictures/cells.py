"""Numbers as colored cells: matrices of weights, and sentences as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor, nn

from pictures.style import BLUE, FAINT, ORANGE, figure
from torchreg.penalties import ProximalPenalty

SENTENCE = ["the", "cat", "saw", "the", "dog", "and", "the", "dog", "saw", "the", "bird"]


def matrix(
    values: Tensor,
    title: str,
    *,
    dropped: Tensor | None = None,
    rows: Sequence[str] = (),
    most: float | None = None,
    size: tuple[float, float] = (2.2, 2.4),
    square: bool = True,
    xlabel: str = "",
    ylabel: str = "",
) -> None:
    """Numbers as cells: blue above 0, orange below, the paler the smaller.

    Args:
        values: of two dimensions.
        title: above.
        dropped: where something was dropped, which is solid orange.
        rows: names.
        most: the magnitude of a solid cell; by default the largest.
        size: of the figure, in inches.
        square: whether cells are.
        xlabel: below.
        ylabel: at the left.
    """
    axes = figure(title, *size)
    values = values.detach().numpy()
    cells = np.zeros((*values.shape, 4))
    cells[..., :3] = np.where(values[..., None] < 0, to_rgb(ORANGE), to_rgb(BLUE))
    cells[..., 3] = np.minimum(np.abs(values) / (most or np.abs(values).max()), 1)
    if dropped is not None:
        cells[dropped.numpy()] = (*to_rgb(ORANGE), 1)
    axes.imshow(cells, interpolation="nearest", aspect="equal" if square else "auto")
    axes.set_xticks([])
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    framed(axes)


def framed(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.7)


def weights() -> Tensor:
    """The weights of 6 output units with 8 inputs, some of them large and some small."""
    sizes = torch.tensor([1.4, 0.25, 0.9, 0.15, 0.6, 0.35])
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(5)) * sizes.unsqueeze(1)


def before_and_after(penalties: Mapping[str, ProximalPenalty]) -> None:
    """A matrix of weights, and what the proximal operator of each penalty (step 1) makes of it."""
    after = {title: penalty.prox(weights(), 1.0) for title, penalty in penalties.items()}
    for title, values in {"weights": weights(), **after}.items():
        most = weights().abs().max().item()
        matrix(values, title, most=most, xlabel="inputs", ylabel="output units")


def digit_weights(values: Tensor, title: str) -> None:
    """The weights of a linear classifier of digits, ten images of 8 x 8 pixels."""
    parted = nn.functional.pad(values.detach().view(2, 5, 8, 8), (0, 1, 0, 1))
    grid = parted.permute(0, 2, 1, 3).reshape(18, 45)[:-1, :-1]
    matrix(grid, title, size=(3.4, 1.9))
    plt.axhline(8, color=FAINT, lw=0.7)
    for edge in (8, 17, 26, 35):
        plt.axvline(edge, color=FAINT, lw=0.7)


@cache
def tokens() -> tuple[Tensor, Tensor]:
    """The sentence as numbers of words, and as vectors of 24 features that are not negative."""
    words = sorted(set(SENTENCE))
    numbers = torch.tensor([words.index(word) for word in SENTENCE])
    vectors = torch.rand(len(words), 24, generator=torch.Generator().manual_seed(0))
    return numbers, (0.15 + 0.85 * vectors)[numbers]


def sequence(values: Tensor, title: str, dropped: Tensor | None = None) -> None:
    """The sentence, one row a word, one column a feature."""
    most = 1.0 if dropped is None else values[~dropped].max().item()
    shape = {"size": (2.35, 2.4), "square": False}
    matrix(values, title, dropped=dropped, most=most, rows=SENTENCE, xlabel="features", **shape)


def sentences(draws: Mapping[str, Sequence[str]], replaced: str) -> None:
    """Sentences beside each other, one row a word; a word that stands for others is orange."""
    text = "; ".join(f"{name}: {' '.join(words)}" for name, words in draws.items())
    axes = figure(text, 0.8 * len(draws), 2.6)
    middle = {"ha": "center", "va": "center"}
    for column, (name, words) in enumerate(draws.items()):
        axes.text(column, -1.3, name, **middle)
        for place, word in enumerate(words):
            color = ORANGE if word == replaced else FAINT
            axes.text(
                column, place, word, color=color, gid="word", **middle
            )  # kept in thumbnails
    axes.set(xlim=(-0.5, len(draws) - 0.5), ylim=(len(SENTENCE) - 0.5, -1.8))
    axes.axis("off")
