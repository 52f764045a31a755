"""What the measures compute, as functions of numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

_NOISE = 1e-9  # far above the rounding of floats, and far below what any check is about


def exceeds(value: float, limit: float) -> bool:
    """Whether a value is above a limit by more than the rounding of floats, so that a limit met exactly is met.

    Example:
        >>> 0.1 + 0.2 > 0.3, exceeds(0.1 + 0.2, 0.3)
        (True, False)
    """
    return value > limit and not math.isclose(value, limit, rel_tol=_NOISE, abs_tol=_NOISE)


def crossing(places: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Where values first reach a level, on straight lines between the places; None if they never do.

    Example:
        >>> crossing([0, 10, 20], [0.1, 0.5, 0.9], 0.6), crossing([0, 10], [0.1, 0.5], 0.6)
        (12.5, None)
    """
    if not exceeds(level, values[0]):
        return places[0]
    for (left, low), (right, high) in pairwise(zip(places, values, strict=True)):
        if not exceeds(level, high):
            return left + (right - left) * (level - low) / (high - low)
    return None


def lowest(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, bool]:
    """Where the parabola through the lowest point and its two neighbors is lowest, and whether it has both of these.

    Without both the lowest point itself.

    Example:
        >>> lowest([0.0, 1.0, 3.0], [4.0, 1.0, 1.0])
        (2.0, True)
        >>> lowest([0.0, 1.0, 3.0], [0.5, 1.0, 1.0])
        (0.0, False)
    """
    at = int(np.argmin(ys))
    if not 0 < at < len(xs) - 1:
        return xs[at], False
    (a, b, c), (f, g, h) = xs[at - 1 : at + 2], ys[at - 1 : at + 2]
    left, right = (b - a) * (h - g), (c - b) * (f - g)  # both at least 0, since g is the lowest
    if left + right == 0:
        return b, True
    return b - ((b - a) * left - (c - b) * right) / (2 * (left + right)), True


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of the least-squares line.

    Example:
        >>> slope([0.0, 1.0, 2.0], [1.0, 0.0, -1.0])
        -1.0
    """
    x, y = fmean(xs), fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def spread(values: Sequence[float]) -> float:
    """The largest distance of a value from the mean, as a share of the mean.

    Example:
        >>> spread([8.0, 10.0, 12.0])
        0.2
    """
    middle = fmean(values)
    return max(abs(value - middle) for value in values) / middle


def thinned(count: int, most: int) -> list[int]:
    """Positions of at most so many of ``count`` values, evenly spaced on a logarithmic axis, with both ends.

    Example:
        >>> thinned(3, 10), thinned(1000, 4)
        ([0, 1, 2], [0, 9, 99, 999])
    """
    if count <= most:
        return list(range(count))
    return sorted({round(place) - 1 for place in np.geomspace(1, count, most)})
