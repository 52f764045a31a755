"""What several measures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

from ....config import Run
from ....errors import UserError
from ...cells import Cell
from ...numbers import plus_minus, rounded
from ...statistics import Mean, paired
from ..found import Check, Figure, figure

Arms = Mapping[str, Sequence[Cell]]
NAMES = {"data.train_size": "training images", "optimizer.lr": "learning rate"}  # of the keys that arms differ in


def open_check(must: str) -> Check:
    return Check(must=must, ours="not finished")


def ending(cells: Sequence[Cell]) -> str:
    """How an arm has ended without any finished models: "diverged", "pruned" or "failed"; else an empty string."""
    statuses = [cell.status for cell in cells]
    if not statuses or "done" in statuses:
        return ""
    return "failed" if "failed" in statuses else statuses[0]


def lost_check(must: str, arms: Arms, names: Iterable[str]) -> Check | None:
    """The check if an arm that it needs has ended without finished models; None if there is no such arm.

    It is not reached, unless all such arms have failed: these runs can be made again.
    """
    ends = {name: end for name in dict.fromkeys(names) if (end := ending(arms[name]))}
    if not ends:
        return None
    ours = ", ".join(f"{name} {end}" for name, end in ends.items())
    return Check(must=must, ours=ours, is_reached=None if set(ends.values()) == {"failed"} else False)


def missing_check(must: str, arms: Arms, names: Iterable[str]) -> Check:
    """The check if an arm that it needs has no finished models, for whatever reason."""
    return lost_check(must, arms, names) or open_check(must)


def check_of(must: str, value: Mean, digits: int, unit: str, is_reached: bool) -> Check:
    ours = f"{plus_minus(value, digits)}{unit}"
    se = None if value.se is None else rounded(value.se)
    return Check(must=must, ours=ours, value=rounded(value.mean), se=se, is_reached=is_reached)


def mean_of(cell: Cell, key: str, factor: float = 1.0) -> Mean:
    found = cell.mean(key)
    return Mean(factor * found.mean, None if found.se is None else factor * found.se)


def percent(cell: Cell, key: str, digits: int) -> Figure | str:
    return figure(cell.mean(key), digits, 100)


def difference(ours: Cell, theirs: Cell, key: str, factor: float = 1.0) -> Mean | None:
    """Ours less theirs over the seeds that both have, with the standard error of the paired differences."""
    found = paired(ours.by_seed(key), theirs.by_seed(key))
    if found is None:
        return None
    return Mean(factor * found.mean, None if found.of_seeds is None else factor * found.of_seeds)


def strength(cell: Cell) -> str:
    return "" if cell.strength is None else f"{cell.strength:.3g}"


def value_at(run: Run, key: str) -> float:
    """The number at a key of the run's settings, such as data.train_size."""
    try:
        return float(reduce(getattr, key.split("."), run))  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"published: along must be the key of a number, such as data.train_size, got {key!r}") from None
