"""The slope of the best decay over the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ....config.published import Slope
from ...cells import Cell
from ...numbers import rounded
from ...statistics import Mean, mean
from ..formulas import lowest, slope
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import NAMES, Arms, check_of, missing_check, percent, value_at


def of_slope(settings: Slope, arms: Arms, metric: str) -> Found:
    """The slope of log(best decay) on log(learning rate), by rule; of the decay with the lowest validation loss."""
    del metric
    rules: dict[str, dict[float, Sequence[Cell]]] = {}
    named: dict[str, list[str]] = {}  # the arms of each rule
    for name, cells in arms.items():
        rule, comma, _ = name.rpartition(", ")
        if comma:
            named.setdefault(rule, []).append(name)
            decayed = sorted(
                (cell for cell in cells if cell.is_done and cell.strength), key=lambda cell: cell.strength or 0.0
            )
            if decayed:
                rules.setdefault(rule, {})[value_at(decayed[0].runs[0], settings.along)] = decayed
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    checks: list[Check] = []
    marks = {}
    for rule, by_rate in rules.items():
        slopes = _slopes(by_rate)
        if slopes is not None:
            marks[rule] = rounded(slopes.mean, 4)
        best = {rate: _best(cells) for rate, cells in by_rate.items()}
        inside = sum(is_inside for _, is_inside in best.values())
        chosen = [min(cells, key=lambda cell: cell.mean("valid_loss").mean) for cells in by_rate.values()]
        lowest_loss = min(chosen, key=lambda cell: cell.mean("valid_loss").mean)
        expected = settings.expected.get(rule)
        rows.append(
            [
                rule,
                figure(slopes, 2),
                "-" if expected is None else f"{expected:g}",
                f"{inside} of {len(best)}",
                percent(lowest_loss, "test_error", 1),
                f"{max(cell.mean('train_error').mean for cell in chosen):.1%}",
            ]
        )
        for rate, cells in sorted(by_rate.items()):
            for cell in cells:
                loss = rounded(cell.mean("valid_loss").mean, 4)
                points.append({"rule": rule, "x": rate, "y": cell.strength, "loss": loss})
            points.append({"rule": rule, "x": rate, "y": rounded(math.exp(best[rate][0]), 4), "loss": None})
        if expected is not None:
            must = f"{rule}: slope {expected:g} ± {settings.within:g}"
            if slopes is None or len(by_rate) < len(named[rule]):
                checks.append(missing_check(must, arms, named[rule]))
            else:
                is_near = abs(slopes.mean - expected) <= settings.within and inside == len(best)
                checks.append(check_of(must, slopes, 2, "", is_near))
    columns = ["rule", "slope", "expected", "best decay inside the grid", "lowest test error, %", "most training error"]
    for rule, expected in settings.expected.items():
        if rule not in rules:
            checks.append(missing_check(f"{rule}: slope {expected:g}", arms, named.get(rule, ())))
    shows = (
        "Validation loss by learning rate and decay. Points: the best decay at each rate, by a parabola through the "
    )
    shows += "three lowest losses. The line has the mean slope over seeds."
    name = NAMES.get(settings.along) or settings.along
    picture = Picture(kind="slope", shows=shows, x=name, rows=points, marks=marks)
    return Found(checks=checks, tables=[Table(title="Slopes", columns=columns, rows=rows)], picture=picture)


def _slopes(by_rate: Mapping[float, Sequence[Cell]]) -> Mean | None:
    """The mean slope over the seeds that all cells have; None if there are none, or a single rate."""
    seeds = set.intersection(*(cell.seeds for cells in by_rate.values() for cell in cells))
    if not seeds or len(by_rate) < 2:
        return None
    rates = [math.log(rate) for rate in by_rate]
    return mean([slope(rates, [_best(cells, seed)[0] for cells in by_rate.values()]) for seed in sorted(seeds)])


def _best(cells: Sequence[Cell], seed: int | None = None) -> tuple[float, bool]:
    """The logarithm of the best decay, of a seed or of the mean over seeds, and whether it is inside the grid."""
    losses = [cell.mean("valid_loss").mean if seed is None else cell.by_seed("valid_loss")[seed] for cell in cells]
    return lowest([math.log(cell.strength or 1.0) for cell in cells], losses)
