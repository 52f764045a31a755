"""The numbers that are given to what is tuned during training, checked."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

_SEEDS = 2**63  # torch's generators take twice as many, to which the count of passes or steps is added


def checked_lr(owner: str, lr: object) -> float:
    """A step size."""
    number = _real(lr)
    if not 0 < number < math.inf:
        raise ValueError(f"{owner}: lr must be finite and > 0, got {lr!r:.200}")
    return number


def checked_spread(owner: str, spread: object) -> float:
    """A ratio above 1, which may be infinite."""
    number = _real(spread)
    if not number > 1:
        raise ValueError(f"{owner}: spread must be > 1, got {spread!r:.200}")
    return number


def checked_count(owner: str, name: str, count: object) -> int:
    """A whole number of at least 1."""
    if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < 1:
        raise ValueError(f"{owner}: {name} must be a whole number >= 1, got {count!r:.200}")
    return int(count)


def checked_seed(owner: str, seed: object) -> int:
    """A whole number that torch's generators take."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -_SEEDS <= int(seed) < _SEEDS:
        raise ValueError(f"{owner}: seed must be a whole number from -2**63 to 2**63 - 1, got {seed!r:.200}")
    return int(seed)


def checked_bounds(owner: str, bounds: Any, end: float) -> tuple[float, float]:
    """Two numbers, both above 0 and below an end."""
    try:
        least, largest = (_real(bounds[0]), _real(bounds[1])) if len(bounds) == 2 else (math.nan, math.nan)
    except (TypeError, KeyError):  # it has no length, or no places
        least = largest = math.nan
    if not 0 < least <= largest < end:
        raise ValueError(f"{owner}: bounds must be two numbers, 0 < least <= largest < {end:g}, got {bounds!r:.200}")
    return least, largest


def _real(value: object) -> float:
    """The number; NaN, which is in no range, for whatever is none."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
