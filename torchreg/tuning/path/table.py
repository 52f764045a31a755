"""The result of a path, which prints as a table and can be plotted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from torchreg.tuning.path.plot import plot
from torchreg.tuning.path.selection import Mean, P, Point, best, one_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class StrengthPath(Sequence[Point]):
    """The points of a path, from the strongest to the weakest strength. It prints as a table.

    It is a sequence of :class:`Point`; :func:`strength_path` returns it.

    Attributes:
        points: the points.
        executor: the executor that trained the members.
        seconds: the time of the path.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.tuning import strength_path
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y, make = x[:, :1] * 2 + 0.1 * x[:, 1:2], lambda: torch.nn.Linear(5, 1)
        >>> path = strength_path(make, L1(1.0), (x, y), (x, y), strengths=[10.0, 0.1], verbose=False)
        >>> [(point.strength, point.zeros) for point in path]
        [(10.0, 1.0), (0.1, 0.6)]
        >>> path.at(0.2).strength
        0.1
    """

    points: tuple[Point, ...]
    executor: str
    seconds: float

    def __getitem__(self, index: int) -> Point:  # type: ignore[override]
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def at(self, strength: float) -> Point:
        """The point with the nearest strength, on a logarithmic scale."""
        return nearest("strength_path", self.points, strength)

    def __repr__(self) -> str:
        sound = [point for point in self.points if not point.diverged]
        marks = {id(best(self)): "best", id(one_standard_error(self)): "1 SE"} if sound else {}
        if len(marks) == 1:
            marks = dict.fromkeys(marks, "best, 1 SE")
        rows = [("strength", "train loss", "valid loss", "valid error", "zeros %", "norm", "")]
        for point in self.points:
            norm = math.hypot(*point.norms.values())
            figures = (shown(point.train_loss), shown(point.valid_loss), shown(point.valid_error))
            mark = "diverged" if point.diverged else marks.get(id(point), "")
            rows.append((f"{point.strength:.4g}", *figures, f"{100 * point.zeros:.1f}", f"{norm:.4g}", mark))
        return aligned(rows)

    def plot(self) -> Figure:
        """Plots loss with one standard error, norms and zeros against the strength. Needs matplotlib."""
        return plot(self)


def nearest(owner: str, points: Sequence[P], strength: float) -> P:
    """The point with the nearest strength, on a logarithmic scale."""
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < strength < math.inf:
        raise ValueError(f"{owner}: strength must be > 0 and finite, got {strength!r}")
    return min(points, key=lambda point: abs(math.log(max(point.strength, 1e-300) / strength)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows with their columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def shown(value: Mean) -> str:
    """A mean with its standard error, if there is one."""
    return f"{value.mean:.4g}" + (f" ± {value.se:.2g}" if value.se > 0 else "")
