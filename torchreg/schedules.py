"""Schedules: functions from the step number (0 before the first step) to a factor of strengths, decay or drop rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, final

import torch
from torch import Tensor


class Schedule(Protocol):
    """Any function from the step number to a scale."""

    def __call__(self, step: int, /) -> float: ...


def check_schedule(owner: str, schedule: object, name: str = "schedule") -> None:
    """Raises ``TypeError`` unless the schedule is a function of the step number."""
    advice = ""
    if isinstance(schedule, type):
        got, advice = f"the class {schedule.__name__}", f": call it, as in {schedule.__name__}(steps=1000)"
    elif isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        got = f"a {type(schedule).__name__}"
        advice = ", which changes the learning rate: use a function such as torchreg.cosine(steps=1000)"
    else:
        got = repr(schedule)
    if advice or not callable(schedule):
        raise TypeError(f"{owner}: {name} must be a function of the step number, got {got}{advice}")


def check_scale(owner: str, scale: float | Tensor, members: int | None = None) -> float | Tensor:
    """The scale itself; raises ``ValueError`` unless it is a number or a 0-d tensor, finite and not negative.

    For a stack of models it may also be a tensor with one scale for each member. The values of a tensor on another
    device than the CPU are not checked, because that would wait for the device.
    """
    if isinstance(scale, Tensor) and (scale.ndim == 0 or scale.shape == (members,)):
        if scale.device.type != "cpu" or torch.compiler.is_compiling() or bool(((scale >= 0) & scale.isfinite()).all()):
            return scale
    elif isinstance(scale, Real) and 0 <= scale < math.inf:
        return scale if type(scale) is float else float(scale)
    tensor = "a 0-d tensor" if members is None else f"a tensor of {members} of them, one a member"
    raise ValueError(f"{owner}: scale must be a finite number >= 0 or {tensor}, got {scale!r}")


def of_steps(schedule: object) -> bool:
    """Whether it is a schedule of the step number, or the class of one, where another function is expected."""
    return isinstance(schedule, _Timed) or (isinstance(schedule, type) and issubclass(schedule, _Timed))


def share_at(owner: str, schedule: Callable[[float], object], progress: float) -> float:
    """The share, in [0, 1], that a function of the progress gives; of a tensor it is waited for."""
    found: Any = schedule(progress)
    try:
        share = float(found)
    except (TypeError, ValueError, RuntimeError):  # no number, or several
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{owner}: schedule must give shares in [0, 1], got {found!r} at {progress:g}")
    return share


@dataclass(frozen=True)
class _Timed:
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be a whole number >= 1, got {self.steps!r}")


@dataclass(frozen=True)
class _Ramp(_Timed):
    start: float = 1.0
    end: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if isinstance(self.after, bool) or not isinstance(self.after, int) or self.after < 0:
            raise ValueError(f"{owner}: after must be a whole number >= 0, got {self.after!r}")
        for key in ("start", "end"):
            level = getattr(self, key)
            if not isinstance(level, Real) or not 0 <= float(level) < math.inf:
                raise ValueError(f"{owner}: {key} must be a finite number >= 0, got {level!r}")

    def _progress(self, step: int) -> float:
        return min(max(step - self.after, 0) / self.steps, 1.0)


@final
@dataclass(frozen=True)
class linear(_Ramp):
    r"""A straight line from ``start`` to ``end`` over ``steps`` steps, then constant.

    .. math:: c_t = (1 - x) \cdot \text{start} + x \cdot \text{end}, \qquad
              x = \min(\max(t - \text{after}, 0) / \text{steps}, 1)

    Args:
        steps: the length of the line, at least 1.
        start: the factor before it, finite and not negative.
        end: the factor after it, finite and not negative.
        after: the number of steps before it begins.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> warmup = linear(steps=10, start=0.0, end=1.0)
        >>> warmup(0), warmup(5), warmup(100)
        (0.0, 0.5, 1.0)
    """

    def __call__(self, step: int, /) -> float:
        return self.start * (1 - self._progress(step)) + self.end * self._progress(step)


@final
@dataclass(frozen=True)
class cosine(_Ramp):
    r"""Half a cosine from ``start`` to ``end`` over ``steps`` steps, then constant.

    .. math:: c_t = \text{end} + \frac{\text{start} - \text{end}}{2} (1 + \cos \pi x), \qquad
              x = \min(\max(t - \text{after}, 0) / \text{steps}, 1)

    Args:
        steps, start, end, after: as for :class:`linear`.

    Raises:
        ValueError: an argument out of range.

    References:
        Ilya Loshchilov, Frank Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Example:
        >>> decay = cosine(steps=10)
        >>> decay(0), round(decay(5), 3), decay(10)
        (1.0, 0.5, 0.0)
    """

    def __call__(self, step: int, /) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._progress(step))) / 2


@final
@dataclass(frozen=True)
class early(_Timed):
    r"""1 for the first ``steps`` steps, then 0. Early dropout helps networks that underfit.

    .. math:: c_t = 1 \text{ if } t < \text{steps}, \text{ else } 0

    Args:
        steps: how long the factor is 1, at least 1.

    Raises:
        ValueError: ``steps`` is not a whole number of at least 1.

    Example:
        >>> rate = early(steps=10)
        >>> rate(9), rate(10)
        (1.0, 0.0)

    References:
        Zhuang Liu, Zhiqiu Xu, Joseph Jin, Zhiqiang Shen, Trevor Darrell, "Dropout Reduces Underfitting", ICML 2023.
    """

    def __call__(self, step: int, /) -> float:
        return float(step < self.steps)


@final
@dataclass(frozen=True)
class late(_Timed):
    r"""0 for the first ``steps`` steps, then 1. Late dropout helps networks that overfit.

    .. math:: c_t = 0 \text{ if } t < \text{steps}, \text{ else } 1

    Args:
        steps: how long the factor is 0, at least 1.

    Raises:
        ValueError: ``steps`` is not a whole number of at least 1.

    Example:
        >>> rate = late(steps=10)
        >>> rate(9), rate(10)
        (0.0, 1.0)

    References:
        Zhuang Liu, Zhiqiu Xu, Joseph Jin, Zhiqiang Shen, Trevor Darrell, "Dropout Reduces Underfitting", ICML 2023.
    """

    def __call__(self, step: int, /) -> float:
        return float(step >= self.steps)


@final
@dataclass(frozen=True)
class curriculum(_Timed):
    r"""An increase from 0 towards 1 that is fast at first.

    .. math:: c_t = 1 - e^{-10 t / T}

    Args:
        steps: :math:`T`, the length of training in steps, at least 1.

    Raises:
        ValueError: ``steps`` is not a whole number of at least 1.

    Example:
        >>> rate = curriculum(steps=100)
        >>> rate(0), round(rate(10), 2), round(rate(100), 2)
        (0.0, 0.63, 1.0)

    References:
        Pietro Morerio, Jacopo Cavazza, Riccardo Volpi, René Vidal, Vittorio Murino, "Curriculum Dropout", ICCV 2017.
    """

    def __call__(self, step: int, /) -> float:
        return 1 - math.exp(-10 * step / self.steps)
