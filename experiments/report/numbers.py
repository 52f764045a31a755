"""How figures are written: means with their standard errors, shares in percent, errors in the unit of their task."""

from __future__ import annotations

import math
from typing import NamedTuple

from .statistics import Mean


class Unit(NamedTuple):
    """How errors and their differences are written."""

    factor: float
    digits: int
    points: str  # what follows a difference

    def mean(self, value: Mean) -> str:
        """An error with its standard error."""
        scaled = Mean(self.factor * value.mean, None if value.se is None else self.factor * value.se)
        return plus_minus(scaled, self.digits)

    def size(self, value: float) -> str:
        """A standard error, or another size."""
        return f"{self.factor * value:.{self.digits}f}"

    def signed(self, value: float) -> str:
        """A difference."""
        return f"{self.factor * value:+.{self.digits}f}"


PERCENT = Unit(100.0, 1, " points")


def unit_of_rmse(size: float) -> Unit:
    """The unit of root mean squared errors of about this size: they are written with four digits.

    Example:
        >>> unit_of_rmse(58.3).mean(Mean(57.123, 1.0))
        '57.12 ± 1.00'
    """
    return Unit(1.0, min(max(3 - math.floor(math.log10(abs(size) or 1.0)), 0), 9), "")


def percent(value: Mean) -> str:
    """A share in percent, with its standard error."""
    return PERCENT.mean(value)


def plus_minus(value: Mean, digits: int) -> str:
    """A mean with its standard error, if that is known and not 0."""
    return f"{value.mean:.{digits}f}" + (f" ± {value.se:.{digits}f}" if value.se else "")


def rounded(value: float, digits: int = 6) -> float:
    """The number with so many digits, for pictures.

    Example:
        >>> rounded(0.123456789), rounded(1234.5678, 4)
        (0.123457, 1235.0)
    """
    return float(f"{value:.{digits}g}")
