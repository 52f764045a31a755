"""The strengths that are tuned: where each starts, and how it moves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from torchreg.penalties import Term
from torchreg.regularizer import Regularizer
from torchreg.tuning.online.descent import NO_MOMENTS, normalized

Per = Literal["regularizer", "parameter"]

_ROUNDING = 1e-12
_LEAST_EFFECT = 1e-6  # of a step on the weights, relative to their norm: below, strengths are alike


class TunedStrength:
    """One strength that is tuned, with the parameters that share it."""

    def __init__(self, regularizer: Regularizer, name: str, params: Sequence[nn.Parameter], unit: float) -> None:
        self.regularizer, self.name, self.params, self.unit = regularizer, name, tuple(params), unit
        self.log_scale, self.moments = 0.0, NO_MOMENTS
        self.reach = 0.0  # the largest relative change of the weights in a step so far, for a scale of 1
        names = {a.param: a.name for a in regularizer.entries}
        self._names = [names[param] for param in self.params]

    def start(self, bounds: tuple[float, float]) -> None:
        """Takes the regularizer's scale.

        Raises:
            ValueError: it is 0 or outside the bounds, or several scales for one strength.
        """
        scale = self.regularizer.scale
        scales = [float(scale[name]) for name in self._names] if isinstance(scale, Mapping) else [float(scale)]
        value = scales[0]
        for name, other in zip(self._names, scales, strict=False):
            if other != value:
                raise ValueError(
                    f"AutoStrength: scale must be one number for per='regularizer', got {value:g} for "
                    f"{self._names[0]} and {other:g} for {name}: use per='parameter'"
                )
        if value == 0:
            raise ValueError(f"AutoStrength: scale must be > 0 to start from, got 0 for {self.name}")
        if value != self.scale:  # else the way by the logarithm would round it
            self.log_scale = math.log(value)
        least, largest = bounds
        if not least * (1 - _ROUNDING) <= self.strength <= largest * (1 + _ROUNDING):
            raise ValueError(
                f"AutoStrength: strength must start from {least:g} to {largest:g}, got {self.strength:g} for "
                f"{self.name}: widen bounds, or change the strength or the regularizer's scale"
            )

    @property
    def scale(self) -> float:
        return math.exp(self.log_scale)

    @property
    def strength(self) -> float:
        return self.unit * self.scale

    def note(self, change: float, size: float) -> None:
        """Notes the squared norms of what a scale of 1 changes in a step, and of the weights."""
        if 0 < size < math.inf and change < math.inf:
            self.reach = max(self.reach, math.sqrt(change / size))

    def move(self, slope: float, lr: float, bounds: tuple[float, float], every: int, drawn: float) -> None:
        """Descends along the slope, and moves by ``drawn``."""
        if slope == 0 and not any(bool(param.any()) for param in self.params):
            move = -1.0  # all weights are zero: the slope would stay 0
        elif not math.isfinite(slope):
            warnings.warn(
                f"AutoStrength: the held-out loss must have a finite gradient, got {slope}: {self.name} stays as it is",
                stacklevel=2,
            )
            return
        else:
            self.moments, unit = normalized(self.moments, slope, every)
            move = -unit
        least, largest = (math.log(bound / self.unit) for bound in bounds)
        if self.reach > 0:
            least = max(least, math.log(_LEAST_EFFECT / self.reach))
        self.log_scale = min(max(self.log_scale + lr * every * move + drawn, least), largest)


def with_distinct_names(tuned: list[TunedStrength]) -> list[TunedStrength]:
    """The same strengths, with a number added to names that occur more than once."""
    names = [item.name for item in tuned]
    for number, item in enumerate(tuned):
        if names.count(names[number]) > 1:
            item.name = f"{names[number]} ({names[: number + 1].count(names[number])})"
    return tuned


def tuned_strengths(regularizer: Regularizer, per: Per) -> list[TunedStrength]:
    chosen = [a for a in regularizer.entries if a.acting is not None]
    labels = list(dict.fromkeys(term.label for a in chosen for term in a.terms))
    units = {a.penalty.strength if isinstance(a.penalty, Term) else 1.0 for a in chosen}
    if 0 in units:
        raise ValueError("AutoStrength: strength must be > 0 to start from, got 0")
    if per == "regularizer":
        unit = units.pop() if len(units) == 1 else 1.0
        return [TunedStrength(regularizer, "+".join(labels), [a.param for a in chosen], unit)]
    return [
        TunedStrength(
            regularizer,
            f"{'+'.join(term.label for term in a.terms)} {a.name}",
            [a.param],
            a.penalty.strength if isinstance(a.penalty, Term) else 1.0,
        )
        for a in chosen
    ]
