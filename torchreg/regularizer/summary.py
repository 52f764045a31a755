"""What a regularizer says of itself: the table that it prints, its name in checkpoints, its last warning."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence

from torch.optim import Optimizer

from torchreg.regularizer.assignment import Assignment
from torchreg.regularizer.compatibility import minimized
from torchreg.schedules import Schedule
from torchreg.selection.folding import Line, printed
from torchreg.selection.modules import listed
from torchreg.selection.parameters import unwrapped


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


def attached_to(optimizers: Sequence[Optimizer], mode: str, schedule: Schedule | None) -> list[str]:
    """The line that says what a regularizer is attached to; none if it need not be attached."""
    if not optimizers:
        return [] if mode == "loss" and schedule is None else ["  not attached"]
    each = [type(optimizer).__name__ + (minimized(optimizer) if mode == "prox" else "") for optimizer in optimizers]
    return [f"  attached to {' and '.join(each)}"]


def name_in_checkpoints(assignments: Sequence[Assignment], mode: str, schedule: Schedule | None, every: int) -> str:
    """Tells a regularizer from others of the optimizer, also when a strength is another one."""
    labels = dict.fromkeys(term.label for a in assignments for term in a.terms)
    names = [unwrapped(a.name) for a in assignments if a.penalty is not None]
    mark = zlib.crc32("\n".join(names).encode())  # of the names, which may be thousands
    scheduled = "" if schedule is None else ", with a schedule"
    scheduled += "" if every == 1 else f", every {every} steps"
    return f"{'+'.join(labels)} on {len(names)} parameters ({mark:08x}), mode {mode!r}{scheduled}"


def warn_of_no_use(assignments: Sequence[Assignment], mode: str) -> None:
    """Warns that a regularizer had no effect, at the end of its life."""
    if mode == "loss":
        done, advice = "asked for its value", "add value() to the loss, or use penalize(criterion) as the loss"
    else:
        done, advice = "attached", "call attach(optimizer)"
    penalties = dict.fromkeys(repr(a.penalty) for a in assignments if a.penalty is not None)
    what = f"{listed(list(penalties))} in mode {mode!r}"
    warnings.warn(f"Regularizer: {what} was never {done} and had no effect: {advice}", stacklevel=3)
