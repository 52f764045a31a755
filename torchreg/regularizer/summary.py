"""The table that a regularizer prints: which parameters are penalized, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence

from torchreg.regularizer.assignment import Assignment
from torchreg.selection.folding import Line, printed


def table(assignments: Sequence[Assignment]) -> str:
    """The number of penalized parameters, and a line for each: name, shape, number of values, penalty or reason.

    In a long table rows that differ in one part of the name become one row:
    ``layer.{0-11}.attention.{q,k,v}.weight``.
    """
    lines = [Line.of(a.name, a.param, a.status) for a in assignments]
    chosen = [line.values for a, line in zip(assignments, lines, strict=True) if a.is_penalized]
    count = sum(line.values for line in lines)
    first = f"{len(chosen)} of {len(assignments)} parameters penalized, {sum(chosen):,} of {count:,} values"
    return "\n".join([first, *printed(lines, "penalty")])
