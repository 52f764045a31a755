"""Descent along a noisy slope with steps that do not depend on the slope's scale."""

from __future__ import annotations

import math

Moments = tuple[float, float, float]  # averages of the slope and of its square, and how many went into them

NO_MOMENTS: Moments = (0.0, 0.0, 0.0)

_MEMORY = (0.9, 0.99)
EVEN = (0.9, 0.9)  # no step is above 1, and slopes that were much larger are soon forgotten


def normalized(
    moments: Moments, slope: float, every: int = 1, memory: tuple[float, float] = _MEMORY
) -> tuple[Moments, float]:
    """The moments updated with a slope, and the step: Adam's step of size 1.

    Its size is about 1 if the slopes agree, and smaller if they do not. A slope that is taken every so many steps only
    counts for all of them, so that the moments remember as many steps as they do for ``every=1``.
    """
    mean, square, count = moments
    first, second = (kept**every for kept in memory)
    mean, square, count = first * mean + (1 - first) * slope, second * square + (1 - second) * slope**2, count + 1
    root = math.sqrt(square / (1 - second**count))
    return (mean, square, count), mean / (1 - first**count) / root if root > 0 else 0.0
