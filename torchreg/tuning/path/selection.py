"""The points of a path, and the choice of a strength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args

from torch import nn

By = Literal["loss", "error"]


class Mean(NamedTuple):
    """A mean and its standard error."""

    mean: float
    se: float


class Validated(Protocol):
    """What a choice looks at in a point of a path."""

    @property
    def strength(self) -> float: ...

    @property
    def diverged(self) -> bool: ...

    def valid(self, by: By) -> Mean: ...


P = TypeVar("P", bound=Validated)


@dataclass(frozen=True, eq=False)
class Point:
    """One strength of a path.

    Attributes:
        strength: the factor of the penalty.
        train_loss, valid_loss: mean and standard error over the folds, or of a single fold over its examples.
        train_error, valid_error: the same for the error: the share of wrong classes, or the root mean square.
        zeros: the share of penalized weights that are exactly zero.
        norms: the norm of each penalized parameter, by name.
        optimality: the largest distance from a stationary point over the folds; NaN with an optimizer.
        models: the models of each fold and seed, if they were kept.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.tuning import strength_path
        >>> data = torch.eye(6), torch.arange(6.0)[:, None]
        >>> path = strength_path(lambda: nn.Linear(6, 1), L1(1.0), data, data, strengths=[10.0], verbose=False)
        >>> path[0].strength, path[0].zeros
        (10.0, 1.0)
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
        """Whether the training or validation loss is not finite."""
        return not all(map(math.isfinite, (self.train_loss.mean, self.valid_loss.mean)))

    def valid(self, by: By) -> Mean:
        """The validation loss or error."""
        return self.valid_loss if by == "loss" else self.valid_error


def best(path: Sequence[P], by: By = "loss") -> P:
    r"""The point with the lowest validation loss or error; of equal points the strongest.

    .. math:: s^* = \operatorname{argmin}_s \bar L(s)

    Args:
        path: the points, such as a :class:`StrengthPath` or a :class:`RidgePath`.
        by: ``"loss"`` or ``"error"``.

    Raises:
        ValueError: all points diverged, or ``by`` is another word.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.tuning import strength_path
        >>> data = torch.eye(6), torch.arange(6.0)[:, None]
        >>> path = strength_path(lambda: nn.Linear(6, 1), L1(1.0), data, data, strengths=[0.5, 0.1], verbose=False)
        >>> best(path).strength
        0.1
    """
    _check_by(by)
    return min(_sound(path), key=lambda point: (point.valid(by).mean, -point.strength))


def one_standard_error(path: Sequence[P], by: By = "loss") -> P:
    r"""The strongest point whose validation loss or error is within one standard error of the best.

    .. math:: \max \{ s : \bar L(s) \le \bar L(s^*) + \operatorname{SE}(s^*) \}, \qquad
              \operatorname{SE} = \operatorname{SD} / \sqrt{\text{folds}}

    where :math:`s^*` is the strength of the :func:`best` point. With a single fold the standard error is that of a mean
    over its examples; for an error rate :math:`e` over :math:`n` examples it is :math:`\sqrt{e (1 - e) / n}`.

    Args:
        path: the points, such as a :class:`StrengthPath` or a :class:`RidgePath`.
        by: ``"loss"`` or ``"error"``.

    Raises:
        ValueError: all points diverged, or ``by`` is another word.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.tuning import strength_path
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] + torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
        >>> path = strength_path(lambda: nn.Linear(5, 1), L1(1.0), (x, y), count=5, verbose=False)
        >>> one_standard_error(path).strength >= best(path).strength
        True

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
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")


def _sound(path: Sequence[P]) -> list[P]:
    sound = [point for point in path if not point.diverged]
    if not sound:
        raise ValueError("all points diverged: check the data, or lower the optimizer's lr")
    return sound
