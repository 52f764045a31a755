"""What a path of strengths has found, and which strength to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

By = Literal["loss", "error"]


class Mean(NamedTuple):
    """A mean and its standard error."""

    mean: float
    se: float


@dataclass(frozen=True, eq=False)
class Point:
    """One strength of a path.

    Attributes:
        strength: what the penalty was multiplied with.
        train_loss, valid_loss: mean and standard error over folds; of a single fold over its examples.
        train_error, valid_error: of classes the share of wrong ones, else the root of the mean square.
        zeros: the share of penalized weights that are exactly zero.
        norms: of each penalized parameter.
        optimality: the largest distance from a stationary point over the folds, which certifies a minimum if it is 0;
            NaN where an optimizer was given.
        models: one for each fold and seed, if they were kept.
    """

    strength: float
    train_loss: Mean
    valid_loss: Mean
    train_error: Mean
    valid_error: Mean
    zeros: float
    norms: dict[str, float]
    optimality: float
    models: Sequence[nn.Module]

    @property
    def diverged(self) -> bool:
        """Whether the loss of any of its members is not finite."""
        return not all(map(math.isfinite, (self.train_loss.mean, self.valid_loss.mean)))

    def valid(self, by: By) -> Mean:
        """The figure that strengths are compared by."""
        return self.valid_loss if by == "loss" else self.valid_error


@dataclass(frozen=True, eq=False)
class StrengthPath(Sequence[Point]):
    """The points of a path, from the strongest to the weakest; prints as a table and plots itself.

    Attributes:
        points: the points.
        way: how the members were trained.
        seconds: what it took.
    """

    points: tuple[Point, ...]
    way: str
    seconds: float

    def __getitem__(self, index: int) -> Point:  # type: ignore[override]
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def at(self, strength: float) -> Point:
        """The point at the strength nearest to that, on a logarithmic scale."""
        return min(self.points, key=lambda point: abs(math.log(max(point.strength, 1e-300) / strength)))

    def __repr__(self) -> str:
        sound = [point for point in self.points if not point.diverged]
        marks = {id(best(self)): "best", id(one_standard_error(self)): "1 SE"} if sound else {}
        if len(marks) == 1:
            marks = dict.fromkeys(marks, "best, 1 SE")
        rows = [("strength", "train loss", "valid loss", "valid error", "zeros %", "norm", "")]
        for point in self.points:
            norm = math.hypot(*point.norms.values())
            figures = (_shown(point.train_loss), _shown(point.valid_loss), _shown(point.valid_error))
            mark = "diverged" if point.diverged else marks.get(id(point), "")
            rows.append((f"{point.strength:.4g}", *figures, f"{100 * point.zeros:.1f}", f"{norm:.4g}", mark))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def plot(self) -> Figure:
        """Validation loss with one standard error, coefficient paths and zeros against strength. Needs matplotlib."""
        from torchreg.tuning.plot import plot

        return plot(self)


def best(path: Sequence[Point], by: By = "loss") -> Point:
    """The point with the lowest validation loss or error; of equals the strongest.

    Raises:
        ValueError: all points diverged.
    """
    return min(_sound(path), key=lambda point: (point.valid(by).mean, -point.strength))


def one_standard_error(path: Sequence[Point], by: By = "loss") -> Point:
    r"""The strongest point whose validation figure is within one standard error of the best one's.

    .. math:: \max \{ s : \bar L(s) \le \bar L(s^*) + \operatorname{SE}(s^*) \}, \qquad
              \operatorname{SE} = \operatorname{SD} / \sqrt{\text{folds}}

    With a single fold the standard error is that of a mean over its examples; of an error rate :math:`e` over :math:`n`
    examples it is :math:`\sqrt{e (1 - e) / n}`.

    Raises:
        ValueError: all points diverged.

    References:
        Leo Breiman, Jerome Friedman, Charles Stone, Richard Olshen, "Classification and Regression Trees", 1984,
        section 3.4.3. Trevor Hastie, Robert Tibshirani, Jerome Friedman, "The Elements of Statistical Learning", 2009,
        section 7.10.
    """
    lowest = best(path, by).valid(by)
    within = [point for point in _sound(path) if point.valid(by).mean <= lowest.mean + lowest.se]
    return max(within, key=lambda point: point.strength)


def _sound(path: Sequence[Point]) -> list[Point]:
    sound = [point for point in path if not point.diverged]
    if not sound:
        raise ValueError("strength_path: all members diverged: lower the optimizer's lr, or the strengths")
    return sound


def _shown(value: Mean) -> str:
    return f"{value.mean:.4g}" + (f" ± {value.se:.2g}" if value.se > 0 else "")
