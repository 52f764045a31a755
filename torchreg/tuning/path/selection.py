"""What became of each strength, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import nn

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


def best(path: Sequence[Point], by: By = "loss") -> Point:
    """The point with the lowest validation loss or error; of equals the strongest.

    Raises:
        ValueError: all points diverged.
    """
    _check_by(by)
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


def _check_by(by: str) -> None:
    if by not in get_args(By):
        raise ValueError(f"strength_path: by must be one of {', '.join(get_args(By))}, got {by!r}")


def _sound(path: Sequence[Point]) -> list[Point]:
    sound = [point for point in path if not point.diverged]
    if not sound:
        raise ValueError("strength_path: all members diverged: check the data, or lower the optimizer's lr")
    return sound
