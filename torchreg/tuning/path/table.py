"""A path of strengths, which prints as a table and plots itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchreg.tuning.path.plot import plot
from torchreg.tuning.path.selection import Mean, Point, best, one_standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class StrengthPath(Sequence[Point]):
    """The points of a path, from the strongest to the weakest; prints as a table and plots itself.

    Attributes:
        points: the points.
        executor: how the members were trained.
        seconds: what it took.
    """

    points: tuple[Point, ...]
    executor: str
    seconds: float

    def __getitem__(self, index: int) -> Point:  # type: ignore[override]
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def at(self, strength: float) -> Point:
        """The point at the strength nearest to that, on a logarithmic scale."""
        if not strength > 0:
            raise ValueError(f"strength_path: strength must be > 0, got {strength!r}")
        return min(self.points, key=lambda point: abs(math.log(max(point.strength, 1e-300) / strength)))

    def __repr__(self) -> str:
        sound = [point for point in self.points if not point.diverged]
        marks = {id(best(self)): "best", id(one_standard_error(self)): "1 SE"} if sound else {}
        if len(marks) == 1:
            marks = dict.fromkeys(marks, "best, 1 SE")
        rows = [("strength", "train loss", "valid loss", "valid error", "zeros %", "norm", "")]
        for point in self.points:
            norm = math.hypot(*point.norms.values())
            figures = (_shown(point.train_loss), _shown(point.valid_loss), _shown(point.valid_error))
            mark = "diverged" if point.diverged else marks.get(id(point), "")
            rows.append((f"{point.strength:.4g}", *figures, f"{100 * point.zeros:.1f}", f"{norm:.4g}", mark))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def plot(self) -> Figure:
        """Validation loss with one standard error, coefficient paths and zeros against strength. Needs matplotlib."""
        return plot(self)


def _shown(value: Mean) -> str:
    return f"{value.mean:.4g}" + (f" ± {value.se:.2g}" if value.se > 0 else "")
