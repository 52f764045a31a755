"""How strong a penalty is at which step: functions from the step number (0 before the first) to a scale."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, final

import torch
from torch import Tensor


class Schedule(Protocol):
    """Anything that maps a step number to a scale: a function will do."""

    def __call__(self, step: int, /) -> float: ...


def check_scale(owner: str, scale: float | Tensor) -> float | Tensor:
    """The scale itself; raises ``ValueError`` unless it is a number or a 0-d tensor, finite and not negative.

    A tensor on another device than the CPU is not looked at, which would wait for the device.
    """
    if isinstance(scale, Tensor) and scale.ndim == 0:
        if scale.device.type != "cpu" or torch.compiler.is_compiling() or 0 <= scale < math.inf:
            return scale
    elif isinstance(scale, Real) and 0 <= scale < math.inf:
        return scale if type(scale) is float else float(scale)
    raise ValueError(f"{owner}: scale must be a finite number >= 0 or a 0-d tensor, got {scale!r}")


@dataclass(frozen=True)
class _Ramp:
    steps: int
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{owner}: steps must be a whole number >= 1, got {self.steps!r}")
        for key in ("start", "end"):
            level = getattr(self, key)
            if not isinstance(level, Real) or not 0 <= float(level) < math.inf:
                raise ValueError(f"{owner}: {key} must be a finite number >= 0, got {level!r}")

    def _progress(self, step: int) -> float:
        return min(step / self.steps, 1.0)


@final
class linear(_Ramp):
    """From ``start`` to ``end`` in a straight line over ``steps`` steps, then constant.

    Example:
        >>> warmup = linear(steps=10, start=0.0, end=1.0)
        >>> warmup(0), warmup(5), warmup(100)
        (0.0, 0.5, 1.0)
    """

    def __call__(self, step: int, /) -> float:
        return self.start * (1 - self._progress(step)) + self.end * self._progress(step)


@final
class cosine(_Ramp):
    """From ``start`` to ``end`` along half a cosine over ``steps`` steps, then constant.

    Example:
        >>> decay = cosine(steps=10)
        >>> decay(0), round(decay(5), 3), decay(10)
        (1.0, 0.5, 0.0)
    """

    def __call__(self, step: int, /) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._progress(step))) / 2
