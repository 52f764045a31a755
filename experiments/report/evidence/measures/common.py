"""What several measures share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce

from ....config import Run
from ....errors import UserError
from ...cells import Cell
from ...numbers import plus_minus, rounded
from ...statistics import Mean, paired
from ..found import Check, Figure, figure

Arms = Mapping[str, Sequence[Cell]]
NAMES = {"data.train_size": "training images", "optimizer.lr": "learning rate"}  # of the keys that arms differ in


def exact(value: float) -> str:
    """A number with all digits that tell it from others, as a study's file has it.

    Example:
        >>> exact(10_000_001.0), exact(100 * 0.57), exact(0.5)
        ('10000001', '57', '0.5')
    """
    return f"{value:.15g}"


def open_check(must: str) -> Check:
    return Check(must=must, ours="not finished")


def apart_check(must: str) -> Check:
    """The check of arms that are finished, and cannot be compared seed by seed."""
    return Check(must=must, ours="no seed in common")


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


def names_of(runs: Sequence[Run]) -> list[str]:
    """The arms of runs, each once."""
    return list(dict.fromkeys(run.arm for run in runs))


def value_at(run: Run, key: str) -> float:
    """The number at a key of the run's settings, such as data.train_size."""
    try:
        return float(reduce(getattr, key.split("."), run))  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"published: along must be the key of a number, such as data.train_size, got {key!r}") from None


def check_distinct_places(measure: str, key: str, names: Iterable[str], runs: Sequence[Run]) -> list[float]:
    """The numbers at a key of arms, which must differ.

    Raises:
        UserError: two of them are equal, or the key is that of no number.
    """
    run_of = {run.arm: run for run in runs}
    found: dict[float, str] = {}
    for name in names:
        place = value_at(run_of[name], key)
        if place in found:
            raise UserError(
                f"published.{measure}: {found[place]!r} and {name!r} must differ in {key}, both have {exact(place)}: "
                "change or remove one"
            )
        found[place] = name
    return list(found)


def check_pair(measure: str, name: str, other: str, names: Collection[str]) -> None:
    """Refuses an arm without the other one that it is held against."""
    if other not in names:
        raise UserError(
            f"published.{measure}: {name!r} needs the arm {other!r}, which is missing: add it, or rename one"
        )
